// cp.async: the destination holds garbage from the issue on, and the data from the wait on, which is as early and as late
// as the GPU may touch it.
#include "../grid.h"
#include "in_flight.h"
#include "instructions.h"
#include "mbarriers.h"
#include <cstring>

namespace emu {

struct Copy {
    void* destination;
    const void* source;
    int bytes;
    bool valid, done;
    Site site;
    InFlight::Handle use;
    uint64_t* counted_by = nullptr;      // the mbarrier that the first cp_async_mbar_arrive after it named
};

// The copies of each thread, the groups they are in, and how many of a thread's groups have completed.
struct Copies final : State {
    struct OfThread {
        std::deque<Copy> under_way;
        std::deque<size_t> groups;       // sizes of the committed groups that have not been waited for
        size_t open = 0;                 // copies since the last commit
    };
    std::vector<OfThread> of = std::vector<OfThread>(1024);
};

static void perform(Copy& copy) {
    if (copy.done) return;
    copy.done = true;
    access(copy.destination, size_t(copy.bytes), Access::write, copy.site);
    if (copy.valid) memcpy(copy.destination, copy.source, size_t(copy.bytes));
    else memset(copy.destination, 0, size_t(copy.bytes));
    block_state<InFlight>().end(copy.use);
}

// Whoever is behind this time of this clock is behind the copy.
static void land(const Copy& copy, uint32_t clock, uint32_t time) {
    if (RaceCheck* check = races())
        check->land(block(), shared_address(copy.destination, copy.site), unsigned(copy.bytes), copy.site, clock, time);
}

namespace ptx {

void cp_async(void* s_destination, const void* g_source, int bytes, bool valid) {
    Site site = EMU_SITE;
    uint32_t address = shared_address(s_destination, site);
    if (address % unsigned(bytes))
        fail("MisalignedAccess", site, "cp.async of %d bytes: the destination is %s", bytes,
             describe_address(s_destination).c_str());
    if (valid && uintptr_t(g_source) % unsigned(bytes))
        fail("MisalignedAccess", site, "cp.async of %d bytes: the source is %s", bytes, describe_address(g_source).c_str());
    shared_address(static_cast<char*>(s_destination) + bytes - 1, site);
    if (valid) access(g_source, size_t(bytes), Access::read, site);
    auto use = block_state<InFlight>().begin("the cp.async", InFlight::Kind::copies, chunks_of(address, unsigned(bytes)), site);
    if (RaceCheck* check = races()) check->start_write(self(), block(), address, unsigned(bytes), site, Toucher::cp_async);
    if (block().counting) {
        const Fiber& me = self();
        block().counts.note(me.warp, me.lane, Space::shared, address, unsigned(bytes), Access::write, site);
        if (valid)
            block().counts.note(me.warp, me.lane, Space::global, uint64_t(g_source), unsigned(bytes), Access::read, site);
    }
    memset(s_destination, 0xFF, size_t(bytes));
    auto& mine = block_state<Copies>().of[self().index];
    mine.under_way.push_back({s_destination, g_source, bytes, valid, false, site, use});
    ++mine.open;
}

void cp_async_commit() {
    auto& mine = block_state<Copies>().of[self().index];
    mine.groups.push_back(mine.open);
    mine.open = 0;
}

void cp_async_wait(int pending) {
    auto& mine = block_state<Copies>().of[self().index];
    for (; mine.groups.size() > size_t(pending); mine.groups.pop_front())
        for (size_t i = 0; i < mine.groups.front(); ++i) {
            perform(mine.under_way.front());
            if (self().order) land(mine.under_way.front(), self().order->index, self().order->time);
            mine.under_way.pop_front();
        }
}

void cp_async_mbar_arrive(uint64_t* s_barrier) {
    Site site = EMU_SITE;
    mbarrier(block(), s_barrier, site);
    auto& mine = block_state<Copies>().of[self().index];
    std::vector<Copy*> copies;
    for (Copy& copy : mine.under_way) {
        copies.push_back(&copy);
        if (!copy.counted_by) copy.counted_by = s_barrier;
    }
    defer(site, [=] {
        MBarrier& barrier = mbarrier(block(), s_barrier, site);
        for (Copy* copy : copies) {
            perform(*copy);
            const MBarrier& counter = mbarrier(block(), copy->counted_by, site);
            land(*copy, counter.copies_clock, counter.phase + 1);
        }
        if (races()) barrier.meeting.publish(barrier.copies_clock, barrier.phase + 1, 0, false);
        arrive(block(), barrier, 1, site);
    });
}

}  // namespace ptx
}  // namespace emu
