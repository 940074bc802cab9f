#include "scheduler.h"

namespace emu {

void Schedule::seed(Order which, uint64_t seed, uint64_t block) {
    order = which;
    state = (seed + 1) * 0x9E3779B97F4A7C15ull ^ (block + 1) * 0xD1B54A32D192ED03ull;
}

// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
unsigned Schedule::below(unsigned n) {
    uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return unsigned((z ^ z >> 31) >> 32) % n;
}

static unsigned nth_bit(uint32_t bits, unsigned n) {
    while (n--) bits &= bits - 1;
    return unsigned(__builtin_ctz(bits));
}

void Scheduler::revive() {
    yielded_.each([this](unsigned warp, uint32_t mask) { ready_.add(warp, mask); });
    yielded_.clear();
}

unsigned Scheduler::take_random() {
    if (ready_.lanes[warp_] == 0 || schedule.below(8) == 0)
        warp_ = nth_bit(ready_.warps, schedule.below(unsigned(__builtin_popcount(ready_.warps))));
    uint32_t lanes = ready_.lanes[warp_];
    return nth_bit(lanes, schedule.below(unsigned(__builtin_popcount(lanes))));
}

unsigned Scheduler::take() {
    unsigned warp, lane;
    if (schedule.order == Schedule::forward) {
        warp = unsigned(__builtin_ctz(ready_.warps));
        lane = unsigned(__builtin_ctz(ready_.lanes[warp]));
    } else if (schedule.order == Schedule::reverse) {
        warp = 31 - unsigned(__builtin_clz(ready_.warps));
        lane = 31 - unsigned(__builtin_clz(ready_.lanes[warp]));
    } else {
        lane = take_random();
        warp = warp_;
    }
    ready_.remove(warp, 1u << lane);
    return warp * 32 + lane;
}

}  // namespace emu
