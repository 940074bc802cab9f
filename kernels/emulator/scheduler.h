// Which thread runs next. Every order is deterministic for a given seed.
#pragma once
#include "thread_set.h"

namespace emu {

class Schedule {
public:
    enum Order : uint32_t { forward, reverse, random };
    Order order = forward;
    uint64_t state = 0;                     // of the random numbers

    void seed(Order which, uint64_t seed, uint64_t block);
    unsigned below(unsigned n);             // a random number in [0, n)
};

// Threads that can run. The first warp (the last one, in reverse) runs as far as it can before another gets its
// turn: that keeps warps as far apart as the barriers allow, which is what brings missing barriers to light.
class Scheduler {
public:
    Schedule schedule;

    void reset() { ready_.clear(); yielded_.clear(); warp_ = 0; }
    void make_ready(unsigned warp, uint32_t mask) { ready_.add(warp, mask); }
    void make_yielded(unsigned warp, uint32_t mask) { yielded_.add(warp, mask); }
    bool any_ready() const { return !ready_.empty(); }
    bool any_yielded() const { return !yielded_.empty(); }

    // Threads that yielded run again once no other can.
    void revive();

    // Takes one ready thread: its index in the block. There must be one.
    unsigned take();

private:
    ThreadSet ready_, yielded_;
    unsigned warp_ = 0;                     // the random schedule stays with a warp for a while
    unsigned take_random();
};

}  // namespace emu
