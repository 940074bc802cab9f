// What accesses cost a warp: wavefronts of shared memory, sectors of global memory, lanes that took part.
//
// Lanes of a warp run one after the other here. Accesses that the warp's lanes make at one address of the program, for the
// n-th time since the warp last met, are one instruction of the warp.
#pragma once
#include "runtime.h"
#include <unordered_map>
#include <vector>

namespace emu {

enum class Space : uint8_t { shared, global };

struct Traffic {
    uint64_t requests = 0, lanes = 0, bytes = 0;         // instructions of a warp, lanes in them, bytes asked for
    uint64_t wavefronts = 0, ideal_wavefronts = 0;       // passes through the 32 banks
    uint64_t sectors = 0, ideal_sectors = 0;             // of 32 bytes
    void operator+=(const Traffic& other);
};

struct TrafficKey {
    Site site;
    Space space;
    Access kind;
    uint8_t width;                                       // bytes of a lane
    bool operator<(const TrafficKey& other) const;
};

class Counts {
public:
    void start(unsigned warps);                          // for a block

    // `where`: an address in shared memory, or a global address. 1 to 16 bytes, aligned.
    void note(unsigned warp, unsigned lane, Space space, uint64_t where, unsigned bytes, Access kind, Site site);
    // The warp's lanes are together: whatever comes is a new instruction.
    void meet(unsigned warp) { if (!dirty_.empty() && !dirty_[warp].empty()) settle(warp); }
    void settle_all();

    // An instruction of a whole warp or of no thread, counted at once.
    void matrices(Access kind, Site site, const uint32_t* rows, unsigned count);      // ldmatrix, stmatrix: 8 rows a matrix
    void bulk(Access kind, Site site, uint64_t global, uint64_t bytes);               // a row of a TMA tile

    template <class Visit> void each(Visit visit) const {
        for (size_t i = 0; i < keys_.size(); ++i) visit(keys_[i], traffic_[i]);
    }
    void clear() { std::fill(traffic_.begin(), traffic_.end(), Traffic()); }

private:
    struct Group {                                       // one instruction, while its lanes arrive
        uint32_t lanes = 0;
        uint32_t at[32];                                 // shared: the address; global: the address / 16
    };
    struct Log {
        uint32_t seen[32] = {};                          // accesses of each lane
        uint32_t first = 0;                              // the number of groups[0]
        std::vector<Group> groups;
    };
    uint32_t number(Site site, Space space, Access kind, unsigned width);
    Log& log(uint32_t key, unsigned warp);
    void settle(unsigned warp);
    void count(uint32_t key, const Group& group);
    void grow_table();

    unsigned warps_ = 0;
    std::vector<TrafficKey> keys_;
    std::vector<Traffic> traffic_;
    std::vector<uint32_t> table_;                        // open addressing: number of a key + 1
    std::vector<std::vector<Log>> logs_;                 // by warp, by number
    std::vector<std::vector<uint32_t>> dirty_;           // by warp: numbers with open groups
};

unsigned shared_wavefronts(const uint32_t* addresses, uint32_t lanes, unsigned bytes);

}  // namespace emu
