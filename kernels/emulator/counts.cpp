// Wavefronts and sectors: see counts.h.
#include "counts.h"
#include <algorithm>

namespace emu {

void Traffic::operator+=(const Traffic& other) {
    requests += other.requests;
    lanes += other.lanes;
    bytes += other.bytes;
    wavefronts += other.wavefronts;
    ideal_wavefronts += other.ideal_wavefronts;
    sectors += other.sectors;
    ideal_sectors += other.ideal_sectors;
}

bool TrafficKey::operator<(const TrafficKey& other) const {
    if (site != other.site) return site < other.site;
    if (space != other.space) return space < other.space;
    return kind != other.kind ? kind < other.kind : width < other.width;
}

// Shared memory hands out one word of each of its 32 banks in a wavefront; lanes that want the same word share it. Accesses
// of 8 bytes go in two halves of the warp, accesses of 16 bytes in four quarters.
unsigned shared_wavefronts(const uint32_t* addresses, uint32_t lanes, unsigned bytes) {
    const unsigned width = std::max(1u, bytes / 4), together = 32 / width;
    unsigned wavefronts = 0;
    for (unsigned first = 0; first < 32; first += together) {
        uint32_t rest = lanes >> first & (together == 32 ? ~0u : (1u << together) - 1);
        uint32_t words[32][32];                          // by bank
        uint8_t count[32] = {};
        unsigned most = 0;
        for (; rest; rest &= rest - 1) {
            const uint32_t begin = addresses[first + unsigned(__builtin_ctz(rest))] / 4;
            for (uint32_t word = begin; word < begin + width; ++word) {
                uint32_t* bank = words[word % 32];
                uint8_t& n = count[word % 32];
                if (std::find(bank, bank + n, word) != bank + n) continue;
                bank[n++] = word;
                most = std::max<unsigned>(most, n);
            }
        }
        wavefronts += most;
    }
    return wavefronts;
}

static unsigned sectors_of(const uint32_t* at, uint32_t lanes) {
    uint32_t found[32];
    unsigned n = 0;
    for (; lanes; lanes &= lanes - 1) {
        const uint32_t sector = at[__builtin_ctz(lanes)] / 2;
        if (n && found[n - 1] == sector) continue;
        if (std::find(found, found + n, sector) == found + n) found[n++] = sector;
    }
    return n;
}

void Counts::start(unsigned warps) {
    if (warps_ == warps) return;
    warps_ = warps;
    logs_.assign(warps, {});
    dirty_.assign(warps, {});
}

static size_t hash(uint64_t key) { return size_t(key * 0x9E3779B97F4A7C15ull >> 32); }

static uint64_t packed(Site site, Space space) { return uint64_t(site) * 2 + uint64_t(space); }

void Counts::grow_table() {
    std::vector<uint32_t> larger(std::max<size_t>(256, table_.size() * 2), 0);
    for (uint32_t i = 0; i < keys_.size(); ++i) {
        size_t slot = hash(packed(keys_[i].site, keys_[i].space)) & (larger.size() - 1);
        while (larger[slot]) slot = (slot + 1) & (larger.size() - 1);
        larger[slot] = i + 1;
    }
    table_ = std::move(larger);
}

// One call in the program makes accesses of one kind and width, but a copy may have two spaces.
uint32_t Counts::number(Site site, Space space, Access kind, unsigned width) {
    if (keys_.size() * 2 >= table_.size()) grow_table();
    size_t slot = hash(packed(site, space)) & (table_.size() - 1);
    for (; table_[slot]; slot = (slot + 1) & (table_.size() - 1)) {
        const TrafficKey& key = keys_[table_[slot] - 1];
        if (key.site == site && key.space == space) return table_[slot] - 1;
    }
    keys_.push_back({site, space, kind, uint8_t(width)});
    traffic_.emplace_back();
    table_[slot] = uint32_t(keys_.size());
    return uint32_t(keys_.size()) - 1;
}

Counts::Log& Counts::log(uint32_t key, unsigned warp) {
    auto& mine = logs_[warp];
    if (mine.size() <= key) mine.resize(key + 32);
    return mine[key];
}

void Counts::note(unsigned warp, unsigned lane, Space space, uint64_t where, unsigned bytes, Access kind, Site site) {
    constexpr size_t most_groups = 1 << 15;
    const uint32_t key = number(site, space, kind, bytes);
    Log& mine = log(key, warp);
    if (mine.groups.empty() && mine.first == 0) dirty_[warp].push_back(key);
    if (mine.groups.size() == most_groups) {             // a warp that never meets: give up waiting for slow lanes
        for (size_t i = 0; i < most_groups / 2; ++i) count(key, mine.groups[i]);
        mine.groups.erase(mine.groups.begin(), mine.groups.begin() + most_groups / 2);
        mine.first += most_groups / 2;
    }
    const uint32_t n = std::max(mine.seen[lane]++, mine.first) - mine.first;
    if (n >= mine.groups.size()) mine.groups.resize(n + 1);
    Group& group = mine.groups[n];
    group.lanes |= 1u << lane;
    group.at[lane] = uint32_t(space == Space::shared ? where : where / 16);
}

void Counts::count(uint32_t key, const Group& group) {
    if (!group.lanes) return;
    const TrafficKey& k = keys_[key];
    Traffic& t = traffic_[key];
    const unsigned lanes = unsigned(__builtin_popcount(group.lanes)), bytes = lanes * k.width;
    ++t.requests;
    t.lanes += lanes;
    t.bytes += bytes;
    if (k.space == Space::shared) {
        const unsigned wavefronts = shared_wavefronts(group.at, group.lanes, k.width);
        t.wavefronts += wavefronts;
        t.ideal_wavefronts += std::min(wavefronts, (bytes + 127) / 128);
    } else {
        const unsigned sectors = sectors_of(group.at, group.lanes);
        t.sectors += sectors;
        t.ideal_sectors += std::min(sectors, (bytes + 31) / 32);
    }
}

void Counts::settle(unsigned warp) {
    for (uint32_t key : dirty_[warp]) {
        Log& mine = logs_[warp][key];
        for (const Group& group : mine.groups) count(key, group);
        mine.groups.clear();
        mine.first = 0;
        std::fill(std::begin(mine.seen), std::end(mine.seen), 0);
    }
    dirty_[warp].clear();
}

void Counts::settle_all() {
    for (unsigned warp = 0; warp < warps_; ++warp) meet(warp);
}

void Counts::matrices(Access kind, Site site, const uint32_t* rows, unsigned count) {
    Traffic& t = traffic_[number(site, Space::shared, kind, 16)];
    ++t.requests;
    t.lanes += 32;
    t.bytes += 128 * count;
    t.ideal_wavefronts += count;
    for (unsigned i = 0; i < count; ++i) t.wavefronts += shared_wavefronts(rows + 8 * i, 0xFF, 16);
}

void Counts::bulk(Access kind, Site site, uint64_t global, uint64_t bytes) {
    Traffic& t = traffic_[number(site, Space::global, kind, 0)];
    ++t.requests;
    t.bytes += bytes;
    t.sectors += (global + bytes - 1) / 32 - global / 32 + 1;
    t.ideal_sectors += (bytes + 31) / 32;
}

}  // namespace emu
