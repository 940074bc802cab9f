// A set of threads of one block: a bit per lane, a word per warp.
#pragma once
#include <cstdint>

namespace emu {

struct ThreadSet {
    static constexpr unsigned max_warps = 32;
    uint32_t warps = 0;                    // warps with a lane in the set
    uint32_t lanes[max_warps] = {};

    bool empty() const { return warps == 0; }
    bool has(unsigned warp, unsigned lane) const { return lanes[warp] >> lane & 1; }

    void add(unsigned warp, uint32_t mask) {
        lanes[warp] |= mask;
        warps |= uint32_t(mask != 0) << warp;
    }

    void remove(unsigned warp, uint32_t mask) {
        lanes[warp] &= ~mask;
        if (lanes[warp] == 0) warps &= ~(1u << warp);
    }

    unsigned count() const {
        unsigned n = 0;
        for (uint32_t rest = warps; rest; rest &= rest - 1) n += unsigned(__builtin_popcount(lanes[__builtin_ctz(rest)]));
        return n;
    }

    // Calls visit(warp, mask) for every warp in the set.
    template <class Visit> void each(Visit visit) const {
        for (uint32_t rest = warps; rest; rest &= rest - 1) visit(unsigned(__builtin_ctz(rest)), lanes[__builtin_ctz(rest)]);
    }

    void clear() {
        for (uint32_t rest = warps; rest; rest &= rest - 1) lanes[__builtin_ctz(rest)] = 0;
        warps = 0;
    }
};

}  // namespace emu
