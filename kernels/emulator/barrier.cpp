// Counted barriers: __syncthreads, its reductions, bar.sync and bar.arrive.
#include "grid.h"
#include "ptx/instructions.h"

namespace emu {

std::string Barrier::name() const { return whole_block ? "__syncthreads()" : "named barrier " + std::to_string(id); }

std::string Barrier::state() const {
    return std::to_string(arrived.count()) + " of " + std::to_string(expected) + " threads arrived";
}

// Those who wait know what all who came knew. `waits`: where the calling thread waits too, or 0.
static void let_go(Block& block, Barrier& barrier, Site waits) {
    const uint32_t step = barrier.meeting.step;
    const int last = barrier.meeting.last;
    const Known known = barrier.meeting.close();
    auto meet = [&](Fiber& fiber, Site site) {
        note_meet(fiber, Meet::wait, barrier, barrier.generation, site, step, last);
        learn(fiber, known, step);
    };
    barrier.waiting.each([&](unsigned warp, uint32_t mask) {
        met(block, warp, mask | (waits && self().warp == warp ? 1u << self().lane : 0));
        for (; mask; mask &= mask - 1) {
            Fiber& fiber = block.fibers[warp * 32 + unsigned(__builtin_ctz(mask))];
            meet(fiber, fiber.waiting_site);
        }
    });
    if (waits) meet(self(), waits);
    ++barrier.generation;
}

// Lets everyone go; returns the result of the reduction.
static int complete(Block& block, Barrier& barrier, Site waits = 0) {
    ++block.counters.barriers;
    unsigned votes = barrier.votes, count = barrier.count;
    int result = barrier.reduce == Reduce::count ? int(votes) : barrier.reduce == Reduce::all ? votes == count : votes != 0;
    barrier.waiting.each([&](unsigned warp, uint32_t mask) {
        for (; mask; mask &= mask - 1) block.fibers[warp * 32 + unsigned(__builtin_ctz(mask))].result = result;
    });
    if (block.counting) let_go(block, barrier, waits);
    wake(block, barrier.waiting);
    barrier.arrived.clear();
    barrier.expected = barrier.count = barrier.votes = 0;
    barrier.whole_block = false;
    return result;
}

static Barrier& arrive(int id, unsigned threads, bool whole_block, Site site) {
    Block& b = block();
    Fiber& me = self();
    if (id < 0 || id > 15) fail("BarrierMisuse", site, "barrier %d does not exist: a block has barriers 0 to 15", id);
    if (!whole_block && (threads == 0 || threads % 32 != 0 || threads > 1024))
        fail("BarrierMisuse", site, "barrier %d for %u threads: the count must be a multiple of 32, up to 1024", id, threads);
    Barrier& barrier = b.barriers[id];
    barrier.id = id;
    if (barrier.expected == 0) {
        barrier.expected = threads;
        barrier.whole_block = whole_block;
    } else if (barrier.expected != threads) {
        fail("BarrierMisuse", site, "barrier %d for %u threads, but threads that are there already (%s) expect %u", id, threads,
             describe(b, barrier.arrived).c_str(), barrier.expected);
    }
    if (barrier.arrived.has(me.warp, me.lane))
        fail("BarrierMisuse", site, "barrier %d: this thread has arrived already and the others have not", id);
    barrier.arrived.add(me.warp, 1u << me.lane);
    ++barrier.count;
    publish(barrier.meeting, me);
    return barrier;
}

static int synchronise(int id, unsigned threads, bool whole_block, bool predicate, Reduce reduce, Site site) {
    Block& b = block();
    Fiber& me = self();
    Barrier& barrier = arrive(id, threads, whole_block, site);
    barrier.reduce = reduce;
    barrier.votes += predicate;
    if (uint32_t others = barrier.waiting.lanes[me.warp])
        check_one_line("a barrier", me.warp, b.fibers[me.warp * 32 + unsigned(__builtin_ctz(others))].waiting_site, site);
    if (barrier.count == barrier.expected) return complete(b, barrier, site);
    wait_on(barrier, barrier.waiting, site);
    return me.result;
}

void syncthreads() { synchronise(0, block().live, true, false, Reduce::count, EMU_SITE); }

int syncthreads_reduce(int predicate, Reduce reduce) {
    return synchronise(0, block().live, true, predicate != 0, reduce, EMU_SITE);
}

void bar_sync(int id, int threads) { synchronise(id, unsigned(threads), false, false, Reduce::count, EMU_SITE); }

bool ptx::bar_red_or(int id, int threads, bool predicate) {
    return synchronise(id, unsigned(threads), false, predicate, Reduce::any, EMU_SITE) != 0;
}

void bar_arrive(int id, int threads) {
    Site site = EMU_SITE;
    Barrier& barrier = arrive(id, unsigned(threads), false, site);
    note_meet(self(), Meet::arrive, barrier, barrier.generation, site, 0, -1);
    if (barrier.count == barrier.expected) complete(block(), barrier);
}

// A thread has exited: __syncthreads no longer waits for it.
void leave_barriers(Block& block) {
    Barrier& barrier = block.barriers[0];
    if (!barrier.whole_block) return;
    barrier.expected = block.live;
    if (barrier.count == block.live) complete(block, barrier);
}

}  // namespace emu
