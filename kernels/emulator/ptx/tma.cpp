// cp.async.bulk and cp.async.bulk.tensor. A load makes its destination garbage at once and brings the data later; a store
// reads its source later, and writes later still. When is up to the schedule.
#include "../grid.h"
#include "in_flight.h"
#include "instructions.h"
#include "mbarriers.h"
#include "tile.h"
#include <cstring>

namespace emu {

static uint32_t check_tile(const char* what, const void* s_tile, const Tile& tile, Site site) {
    uint32_t address = shared_address(s_tile, site);
    if (address % tile.alignment())
        fail("MisalignedAccess", site, "%s: the shared tile is %s, not %u-byte aligned%s", what, describe_address(s_tile).c_str(),
             tile.alignment(), tile.swizzle ? " as its swizzle needs" : "");
    if (tile.bytes() % 16) fail("AsyncMisuse", site, "%s of %u bytes: multiples of 16", what, tile.bytes());
    shared_address(static_cast<const char*>(s_tile) + tile.bytes() - 1, site);
    return address;
}

// ---- loads ----

static void load_into(const char* what, unsigned rank, void* s_tile, uint64_t* s_barrier, const Tile& tile, Site site) {
    Block& there = cluster_block(rank);
    const uint32_t address = shared_address(s_tile, site);
    char* to = static_cast<char*>(map_shared(s_tile, rank, site));
    auto* on = static_cast<uint64_t*>(map_shared(s_barrier, rank, site));
    check_dependency(reinterpret_cast<const void*>(tile.address), what, site);
    if (there.live == 0) fail("AsyncMisuse", site, "%s to block %u of the cluster, which has exited", what, rank);
    if (!mbarrier(there, on, site).fenced)
        fail("AsyncMisuse", site, "%s: the mbarrier was made without mbar_fence_init or fence_proxy_async, so TMA may not "
             "see it", what);
    auto use = block_state<InFlight>(there).begin(what, InFlight::Kind::writes, chunks_of(address, tile.bytes()), site);
    if (RaceCheck* check = races()) {
        check->start_write(self(), there, address, tile.bytes(), site, Toucher::tma_load);
        note_meet(self(), Meet::start, mbarrier(there, on, site), mbarrier(there, on, site).phase, site, 0, -1);
    }
    const uint32_t started = self().order ? ++self().order->step : 0;
    memset(to, 0xFF, tile.bytes());
    block_state<AsyncProxy>(there).wrote(to, address, tile.bytes());
    defer(site, [=, &there] {
        std::vector<uint8_t> image = tile.load(address, site);
        memcpy(to, image.data(), image.size());
        if (worker->grid.spec.checks & check_init) there.shared.mark_written(to, image.size());
        block_state<AsyncProxy>(there).wrote(to, address, tile.bytes());
        block_state<InFlight>(there).end(use);
        MBarrier& barrier = mbarrier(there, on, site);
        if (RaceCheck* check = races()) {
            check->land(there, address, tile.bytes(), site, barrier.clock, barrier.phase + 1);
            barrier.meeting.publish(barrier.clock, barrier.phase + 1, started + 1, true);
        }
        land(there, barrier, long(tile.bytes()), site);
    });
}

// ---- stores ----

struct Store {
    Tile tile;
    uint32_t address;
    const void* source;
    bool add, read = false, written = false;
    Site site;
    std::vector<uint8_t> image;               // as it was at the issue
    InFlight::Handle use;
};

// The bulk stores of each thread, by group.
struct Stores final : State {
    using Group = std::vector<std::shared_ptr<Store>>;
    struct OfThread final : Waitable {
        Group open;
        std::deque<Group> groups;
        ThreadSet waiting;                    // this thread, or nobody
        uint32_t committed = 0;               // groups
        bool finished(size_t pending, bool only_read) const {
            for (size_t i = 0; i + pending < groups.size(); ++i)
                for (const auto& store : groups[i])
                    if (!(only_read ? store->read : store->written)) return false;
            return true;
        }
        std::string name() const override { return "TMA stores"; }
        std::string state() const override { return std::to_string(groups.size()) + " groups under way"; }
    };
    std::vector<OfThread> of = std::vector<OfThread>(1024);
    std::map<unsigned, uint32_t> rows;        // of clocks, by warp: which groups its lanes have waited for

    uint32_t row(unsigned warp) {
        auto [at, is_new] = rows.emplace(warp, 0);
        if (is_new) at->second = races()->new_row();
        return at->second;
    }

    void block_finished() override {
        for (const OfThread& thread : of)
            for (const auto& store : thread.open)
                fail("AsyncMisuse", store->site, "a store in no group when the block ended: tma_commit is missing");
    }
};

static void write(Store& store, Stores::OfThread& thread, Block& block) {
    store.tile.store(store.image, store.address, store.add, store.site);
    store.written = true;
    wake(block, thread.waiting);
}

static void read(const std::shared_ptr<Store>& store, Stores::OfThread& thread, Block& block) {
    if (block.live == 0)
        fail("AsyncMisuse", store->site, "the block ended before TMA had read the tile: tma_wait_read<0> (or tma_wait<0>) is "
             "missing");
    if (memcmp(store->source, store->image.data(), store->image.size()) != 0)
        fail("AsyncMisuse", store->site, "the tile of this store was written again before TMA had read it: tma_wait_read comes "
             "between");
    store->read = true;
    block_state<InFlight>().end(store->use);
    wake(block, thread.waiting);
    defer(store->site, [=, &thread, &block] { write(*store, thread, block); });
}

static void start_store(const char* what, const Tile& tile, const void* source, bool add, Site site) {
    for (unsigned d = 0; d < tile.rank; ++d)                  // as an H200 does, where a load at the same place is fine
        if (tile.at[d] < 0)
            fail("AsyncMisuse", site, "%s at coordinate %lld of dimension %u: a store must not start before the tensor", what,
                 (long long)tile.at[d], d);
    auto store = std::make_shared<Store>();
    store->tile = tile;
    store->address = check_tile(what, source, tile, site);
    store->source = source;
    store->add = add;
    store->site = site;
    access(source, tile.bytes(), Access::read, site, Proxy::async);
    store->use = block_state<InFlight>().begin(what, InFlight::Kind::reads, chunks_of(store->address, tile.bytes()), site);
    block_state<AsyncProxy>().read(source, store->address, tile.bytes(), what, site);
    store->image.assign(static_cast<const uint8_t*>(source), static_cast<const uint8_t*>(source) + tile.bytes());
    auto& thread = block_state<Stores>().of[self().index];
    if (RaceCheck* check = races()) {
        const uint16_t row = uint16_t(block_state<Stores>().row(self().warp));
        RaceCheck::Read read{{self().order}, {RaceCheck::offset(site), thread.committed + 1, 1u << self().lane, 0, row}, {}};
        read.touch.by = Toucher::tma_store;
        check->start_read(read, block(), store->address, tile.bytes());
        note_meet(self(), Meet::start, thread, thread.committed, site, 0, -1);
    }
    thread.open.push_back(store);
    defer(site, [store, &thread, &block = block()] { read(store, thread, block); });
}

namespace ptx {

void tma_load(void* s_tile, const CUtensorMap_st* map, uint64_t* s_barrier, const int* at, int rank, uint16_t blocks) {
    Site site = EMU_SITE;
    const char* what = blocks ? "the tma_load_multicast" : "the tma_load";
    Tile tile = Tile::of(map, at, rank, site);
    check_tile(what, s_tile, tile, site);
    if (blocks >> emu::cluster_size())
        fail("AsyncMisuse", site, "multicast to blocks 0x%x of a cluster of %u", blocks, emu::cluster_size());
    for (unsigned r = 0; r < emu::cluster_size(); ++r)
        if (blocks ? blocks >> r & 1 : r == emu::cluster_rank()) load_into(what, r, s_tile, s_barrier, tile, site);
}

void tma_store(const CUtensorMap_st* map, const int* at, int rank, const void* s_tile, bool add) {
    Site site = EMU_SITE;
    start_store(add ? "the tma_reduce_add" : "the tma_store", Tile::of(map, at, rank, site), s_tile, add, site);
}

void tma_prefetch(const CUtensorMap_st* map, int rank) {
    const int origin[5] = {};
    Tile::of(map, origin, rank ? rank : map->rank, EMU_SITE);
}

static Tile contiguous(const void* g_pointer, int bytes, Element type, unsigned element_bytes, Site site) {
    if (bytes <= 0 || bytes % 16 || uintptr_t(g_pointer) % 16)
        fail("MisalignedAccess", site, "a bulk copy of %d bytes, %s: address and size are multiples of 16", bytes,
             describe_address(g_pointer).c_str());
    return Tile::contiguous(g_pointer, uint32_t(bytes), type, element_bytes);
}

void bulk_load(void* s_destination, const void* g_source, int bytes, uint64_t* s_barrier) {
    Site site = EMU_SITE;
    Tile tile = contiguous(g_source, bytes, Element::u8, 1, site);
    check_tile("the bulk_load", s_destination, tile, site);
    load_into("the bulk_load", emu::cluster_rank(), s_destination, s_barrier, tile, site);
}

void bulk_store(void* g_destination, const void* s_source, int bytes) {
    Site site = EMU_SITE;
    start_store("the bulk_store", contiguous(g_destination, bytes, Element::u8, 1, site), s_source, false, site);
}

void bulk_reduce_add(void* g_destination, const void* s_source, int bytes, AddType type) {
    Site site = EMU_SITE;
    Element element = type == AddType::f32 ? Element::f32 : type == AddType::bf16 ? Element::bf16 : Element::f16;
    Tile tile = contiguous(g_destination, bytes, element, type == AddType::f32 ? 4 : 2, site);
    start_store("the bulk_reduce_add", tile, s_source, true, site);
}

void bulk_prefetch(const void* g_source, int bytes) { contiguous(g_source, bytes, Element::u8, 1, EMU_SITE); }

void tma_commit() {
    auto& mine = block_state<Stores>().of[self().index];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
    ++mine.committed;
}

void tma_wait(int pending, bool only_read) {
    Site site = EMU_SITE;
    auto& mine = block_state<Stores>().of[self().index];
    while (!mine.finished(size_t(pending), only_read)) wait_on(mine, mine.waiting, site);
    if (RaceCheck* check = races()) {
        const uint32_t waited_for = mine.committed - std::min(mine.committed, uint32_t(pending));
        note_meet(self(), Meet::wait, mine, waited_for, site, self().order->step + 1, -1);
        check->learning.learn(*self().order, block_state<Stores>().row(self().warp) * 32 + self().lane, waited_for);
        ++self().order->step;
    }
    if (!only_read)
        while (mine.groups.size() > size_t(pending)) mine.groups.pop_front();
}

}  // namespace ptx
}  // namespace emu
