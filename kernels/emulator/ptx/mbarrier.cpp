// mbarrier.*: arrivals and bytes counted by phase. PTX ISA, "Parallel Synchronization and Communication: mbarrier".
#include "../grid.h"
#include "instructions.h"
#include "mbarriers.h"
#include <string.h>

namespace emu {

constexpr unsigned most_arrivals = (1 << 20) - 1;     // also the most bytes that may be outstanding

std::string MBarrier::name() const { return "mbarrier " + describe_address(address); }

std::string MBarrier::state() const {
    char text[100];
    snprintf(text, sizeof text, "phase %u lacks %u of %u arrivals and %ld bytes", phase, pending, count, bytes);
    return text;
}

// What lies in shared memory where an mbarrier is: enough to notice when somebody stores over it.
static uint64_t cookie(const void* address) { return 0x6D62617272696572ull ^ uint64_t(uintptr_t(address)) << 20; }

static std::string where(const Block& owner, const void* address) {
    if (&owner == &block()) return describe_address(address);
    const void* here = block().shared.pointer(owner.shared.address(address));
    return describe_address(here) + " of block " + std::to_string(owner.rank) + " of the cluster";
}

MBarrier& mbarrier(Block& owner, const void* address, Site site) {
    auto& barriers = block_state<MBarriers>(owner).at;
    auto found = barriers.find(address);
    if (found == barriers.end())
        fail("BarrierMisuse", site, "no mbarrier %s: mbar_init has made none there", where(owner, address).c_str());
    uint64_t stored;
    memcpy(&stored, address, sizeof stored);
    if (stored != cookie(address)) fail("BarrierMisuse", site, "the mbarrier %s was overwritten", where(owner, address).c_str());
    return found->second;
}

void MBarriers::fence(unsigned thread) {
    for (auto& [address, barrier] : at) barrier.fenced |= barrier.made_by == thread;
}

void MBarriers::block_finished() {
    for (auto& [address, barrier] : at)
        if (barrier.bytes != 0)
            fail("BarrierMisuse", barrier.made_at, "the block ended, and the mbarrier %s has %ld bytes that were announced "
                 "and did not land, or the reverse",
                 describe_address(address).c_str(), barrier.bytes);
}

static void end_phase_if_complete(Block& block, MBarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.count;
    barrier.ended_step = barrier.meeting.step;
    barrier.ended_by = barrier.meeting.last;
    barrier.ended = barrier.meeting.close();
    wake(block, barrier.waiting);
}

void arrive(Block& block, MBarrier& barrier, unsigned arrivals, Site site) {
    if (arrivals > barrier.pending)
        fail("BarrierMisuse", site, "%u arrivals at the mbarrier %s, whose phase %u lacks %u of %u (and %ld bytes)", arrivals,
             describe_address(barrier.address).c_str(), barrier.phase, barrier.pending, barrier.count, barrier.bytes);
    barrier.pending -= arrivals;
    end_phase_if_complete(block, barrier);
}

void announce(MBarrier& barrier, long bytes, Site site) {
    barrier.bytes += bytes;
    if (bytes < 0 || barrier.bytes > long(most_arrivals))
        fail("BarrierMisuse", site, "%ld bytes announced to the mbarrier %s: it can wait for %u", bytes,
             describe_address(barrier.address).c_str(), most_arrivals);
}

void land(Block& block, MBarrier& barrier, long bytes, Site site) {
    barrier.bytes -= bytes;
    if (barrier.bytes < 0 && barrier.pending == 0)
        fail("BarrierMisuse", site, "%ld bytes landed on the mbarrier %s, %ld more than its phase %u expects", bytes,
             describe_address(barrier.address).c_str(), -barrier.bytes, barrier.phase);
    end_phase_if_complete(block, barrier);
}

namespace ptx {

static MBarrier& own(uint64_t* address, Site site) {
    access(address, 8, Access::atomic, site);
    MBarrier& barrier = mbarrier(block(), address, site);
    if (RaceCheck* check = races()) check->use_barrier(self(), block(), shared_address(address, site), site);
    return barrier;
}

// The calling thread arrives: who waits for this phase knows what it knows.
static void leave_knowledge(MBarrier& barrier, Site site) {
    note_meet(self(), Meet::arrive, barrier, barrier.phase, site, 0, -1);
    publish(barrier.meeting, self());
}

// The calling thread has seen the end of a phase, the last one that ended.
static void learn_from(const MBarrier& barrier, Site site) {
    note_meet(self(), Meet::wait, barrier, barrier.phase - 1, site, barrier.ended_step, barrier.ended_by);
    learn(self(), barrier.ended, barrier.ended_step);
}

void mbar_init(uint64_t* s_barrier, int arrivals) {
    Site site = EMU_SITE;
    if (shared_address(s_barrier, site) % 8 != 0) fail("BarrierMisuse", site, "an mbarrier must be 8-byte aligned");
    if (arrivals < 1 || unsigned(arrivals) > most_arrivals)
        fail("BarrierMisuse", site, "an mbarrier for %d arrivals: 1 to %u", arrivals, most_arrivals);
    auto& barriers = block_state<MBarriers>().at;
    if (barriers.count(s_barrier))
        fail("BarrierMisuse", site, "there is an mbarrier already, %s: mbar_inval comes first",
             describe_address(s_barrier).c_str());
    access(s_barrier, 8, Access::write, site);
    MBarrier& barrier = barriers[s_barrier];
    barrier.address = s_barrier;
    barrier.count = barrier.pending = unsigned(arrivals);
    barrier.made_by = self().index;
    barrier.made_at = site;
    if (RaceCheck* check = races()) {
        check->write(self(), block(), shared_address(s_barrier, site), 8, site);
        barrier.clock = check->new_clock();
        barrier.copies_clock = check->new_clock();
    }
    *s_barrier = cookie(s_barrier);
}

void mbar_fence_init() { block_state<MBarriers>().fence(self().index); }

void mbar_inval(uint64_t* s_barrier) {
    Site site = EMU_SITE;
    MBarrier& barrier = own(s_barrier, site);
    if (!barrier.waiting.empty())
        fail("BarrierMisuse", site, "the mbarrier %s is invalidated while awaited by %s", describe_address(s_barrier).c_str(),
             describe(block(), barrier.waiting).c_str());
    if (RaceCheck* check = races()) check->write(self(), block(), shared_address(s_barrier, site), 8, site);
    block_state<MBarriers>().at.erase(s_barrier);
}

void mbar_arrive(uint64_t* s_barrier, int arrivals) {
    Site site = EMU_SITE;
    if (arrivals < 1) fail("BarrierMisuse", site, "mbar_arrive with %d arrivals", arrivals);
    MBarrier& barrier = own(s_barrier, site);
    leave_knowledge(barrier, site);
    arrive(block(), barrier, unsigned(arrivals), site);
}

void mbar_expect_tx(uint64_t* s_barrier, int bytes) {
    Site site = EMU_SITE;
    announce(own(s_barrier, site), bytes, site);
}

void mbar_arrive_expect_tx(uint64_t* s_barrier, int bytes) {
    Site site = EMU_SITE;
    MBarrier& barrier = own(s_barrier, site);
    announce(barrier, bytes, site);
    leave_knowledge(barrier, site);
    arrive(block(), barrier, 1, site);
}

void mbar_arrive_cluster(uint64_t* s_barrier, uint32_t rank) {
    Site site = EMU_SITE;
    if (rank >= cluster_size()) fail("BarrierMisuse", site, "block %u of a cluster of %u", rank, cluster_size());
    Block& there = cluster_block(rank);
    const void* mapped = map_shared(s_barrier, rank, site);
    if (there.live == 0)
        fail("BarrierMisuse", site, "arrival at block %u of the cluster, which has exited: cluster_arrive and cluster_wait keep "
             "it alive", rank);
    MBarrier& barrier = mbarrier(there, mapped, site);
    if (&there != &block() && !barrier.fenced)
        fail("BarrierMisuse", site, "block %u made this mbarrier without mbar_fence_init: other blocks may not see it", rank);
    if (RaceCheck* check = races()) check->use_barrier(self(), there, there.shared.address(mapped), site);
    leave_knowledge(barrier, site);
    arrive(there, barrier, 1, site);
}

static void check_parity(int parity, Site site) {
    if (parity != 0 && parity != 1) fail("BarrierMisuse", site, "a wait for parity %d: a phase has parity 0 or 1", parity);
}

static bool complete(const MBarrier& barrier, int parity) { return int(barrier.phase & 1) != parity; }

bool mbar_try_wait(uint64_t* s_barrier, int parity) {
    Site site = EMU_SITE;
    check_parity(parity, site);
    MBarrier& barrier = own(s_barrier, site);
    if (!complete(barrier, parity)) yield();
    if (!complete(own(s_barrier, site), parity)) return false;
    learn_from(barrier, site);
    return true;
}

void mbar_wait(uint64_t* s_barrier, int parity) {
    Site site = EMU_SITE;
    check_parity(parity, site);
    MBarrier& barrier = own(s_barrier, site);
    if (complete(barrier, parity)) return learn_from(barrier, site);
    unsigned phase = barrier.phase;
    wait_on(barrier, barrier.waiting, site);
    // Whoever waits polls, on the GPU: a phase that ends before this thread has seen the previous one may be missed.
    if (barrier.phase != phase + 1)
        fail("BarrierMisuse", site, "the mbarrier %s ended phase %u before this thread had seen the end of phase %u",
             describe_address(s_barrier).c_str(), barrier.phase - 1, phase);
    learn_from(barrier, site);
}

}  // namespace ptx
}  // namespace emu
