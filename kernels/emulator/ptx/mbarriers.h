// The mbarriers of a block, for the bodies that wait for them or complete on them.
#pragma once
#include "../runtime.h"
#include <map>

namespace emu {

// One mbarrier. Phase n is the n-th one, counted from 0; a waiter for parity p waits until a phase of that parity ends.
struct MBarrier final : Waitable {
    const void* address = nullptr;
    unsigned count = 0, pending = 0;     // arrivals of a phase, and those that are missing
    long bytes = 0;                      // announced minus landed
    unsigned phase = 0;
    bool fenced = false;                 // other blocks and TMA may see it
    unsigned made_by = 0;                // thread that made it
    Site made_at = 0;
    ThreadSet waiting;
    Meeting meeting;                     // what arrivals of this phase knew
    Known ended;                         // what those of the last one did
    uint32_t ended_step = 0, clock = 0, copies_clock = 0;     // of what TMA, and what cp.async, lands here
    int ended_by = -1;
    std::string name() const override;
    std::string state() const override;
};

struct MBarriers final : State {
    std::map<const void*, MBarrier> at;
    void fence(unsigned thread);         // what this thread initialised is now visible to TMA
    void block_finished() override;
};

// Fails where there is none, and where its eight bytes have been overwritten.
MBarrier& mbarrier(Block& block, const void* address, Site site);

void arrive(Block& block, MBarrier& barrier, unsigned arrivals, Site site);
void announce(MBarrier& barrier, long bytes, Site site);
void land(Block& block, MBarrier& barrier, long bytes, Site site);

}  // namespace emu
