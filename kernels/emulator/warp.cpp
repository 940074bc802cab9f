// Shuffles, votes and __syncwarp.
#include "grid.h"

namespace emu {

constexpr uint64_t poison = ~uint64_t(0);     // what comes from a lane that takes no part: undefined on the GPU

// What a lane wrote before __syncwarp, the others may read after it. Shuffles and votes order no memory.
static void synchronise_warp(Collective& call) {
    if (!races()) return;
    Meeting meeting;
    for (uint32_t rest = call.mask[0]; rest; rest &= rest - 1) publish(meeting, call.fiber(unsigned(__builtin_ctz(rest))));
    const uint32_t step = meeting.step;
    const Known known = meeting.close();
    for (uint32_t rest = call.mask[0]; rest; rest &= rest - 1) learn(call.fiber(unsigned(__builtin_ctz(rest))), known, step);
}

void syncwarp(unsigned mask) { warp_collective("__syncwarp", mask, synchronise_warp, nullptr, EMU_SITE); }

struct ShuffleArguments {
    uint64_t value, result;
    int operand, width;
    Shuffle kind;
};

// PTX ISA, shfl.sync: the source lane, or the lane itself where the source falls outside its segment.
static unsigned source_lane(const ShuffleArguments& a, unsigned lane) {
    unsigned segment = lane & ~unsigned(a.width - 1), last = segment + unsigned(a.width) - 1;
    int source = a.kind == Shuffle::up ? int(lane) - a.operand
               : a.kind == Shuffle::down ? int(lane) + a.operand
               : a.kind == Shuffle::exclusive_or ? int(lane) ^ a.operand
               : int(segment) + (a.operand & (a.width - 1));
    bool inside = a.kind == Shuffle::up ? source >= int(segment) : source <= int(last);
    return inside ? unsigned(source) & 31 : lane;
}

static void exchange(Collective& call) {
    for (uint32_t rest = call.mask[0]; rest; rest &= rest - 1) {
        unsigned lane = unsigned(__builtin_ctz(rest));
        ShuffleArguments& a = *call.of<ShuffleArguments>(lane);
        const auto* from = call.of<ShuffleArguments>(source_lane(a, lane));
        a.result = from ? from->value : poison;
    }
}

uint64_t shuffle(unsigned mask, uint64_t value, int operand, int width, Shuffle kind) {
    static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("Diverged", EMU_SITE, "%s: width %d is no power of two up to 32", names[int(kind)], width);
    ShuffleArguments arguments{value, 0, operand, width, kind};
    warp_collective(names[int(kind)], mask, exchange, &arguments, EMU_SITE);
    return arguments.result;
}

struct VoteArguments {
    uint64_t value;
    unsigned result;
    Vote kind;
};

static unsigned lanes_where(const Collective& call, uint64_t value) {
    unsigned lanes = 0;
    for (uint32_t rest = call.mask[0]; rest; rest &= rest - 1) {
        unsigned lane = unsigned(__builtin_ctz(rest));
        if (call.of<VoteArguments>(lane)->value == value) lanes |= 1u << lane;
    }
    return lanes;
}

static unsigned reduced(const Collective& call, Vote kind) {
    unsigned result = kind == Vote::min ? ~0u : 0;
    for (uint32_t rest = call.mask[0]; rest; rest &= rest - 1) {
        unsigned value = unsigned(call.of<VoteArguments>(unsigned(__builtin_ctz(rest)))->value);
        if (kind == Vote::add) result += value;
        else if (kind == Vote::max ? value > result : value < result) result = value;
    }
    return result;
}

static void count_votes(Collective& call) {
    unsigned all = call.mask[0], yes = lanes_where(call, 1);
    for (uint32_t rest = all; rest; rest &= rest - 1) {
        VoteArguments& a = *call.of<VoteArguments>(unsigned(__builtin_ctz(rest)));
        switch (a.kind) {
            case Vote::ballot: a.result = yes; break;
            case Vote::all: a.result = yes == all; break;
            case Vote::any: a.result = yes != 0; break;
            case Vote::match_any: a.result = lanes_where(call, a.value); break;
            case Vote::match_all: a.result = lanes_where(call, a.value) == all ? all : 0; break;
            case Vote::max: case Vote::min: case Vote::add: a.result = reduced(call, a.kind); break;
        }
    }
}

unsigned vote(unsigned mask, uint64_t value, Vote kind) {
    static const char* const names[] = {"__ballot_sync", "__all_sync", "__any_sync", "__match_any_sync", "__match_all_sync",
                                        "__reduce_max_sync", "__reduce_min_sync", "__reduce_add_sync"};
    VoteArguments arguments{value, 0, kind};
    warp_collective(names[int(kind)], mask, count_votes, &arguments, EMU_SITE);
    return arguments.result;
}

// The hardware may run any subset of a diverged warp together, so a program may rely on its own lane only.
unsigned activemask() { return 1u << self().lane; }

}  // namespace emu
