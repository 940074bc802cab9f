// wgmma.*: products that a warpgroup starts, groups, and waits for. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-
// Accumulate Instructions". Until the wait the accumulators hold NaN, and the operands are reserved.
#include "../access.h"
#include "../grid.h"
#include "formats.h"
#include "in_flight.h"
#include "instructions.h"
#include "operand.h"
#include <algorithm>
#include <cstring>

namespace emu {

constexpr uint32_t nobodys = 0xFFFFFFFF;     // a NaN: accumulators between issue and wait

// The 64 x n accumulators of a warpgroup, known by where thread 0 keeps its share.
struct Accumulators {
    float* of[128] = {};                 // each thread's n / 2
    int n = 0;
    unsigned under_way = 0;              // products that will still change them
    uint64_t written_at = 0;             // the wait that handed them back
    std::vector<float> tile;             // [64][n]
};

struct Product {
    Accumulators* d;
    Operand a, b;
    std::vector<float> fragments;        // A from registers, [64][k]
    const uint32_t* registers;           // of thread 0, or null
    uint32_t first_registers[4];         // what they held
    bool accumulate;
    Site site;
    InFlight::Handle use;
    uint32_t number = 0;                 // of the warpgroup's products
    bool done = false;
};

// Registers that a thread named in a fence, and what they held: nobody may write them until they are in use.
struct HandedOver {
    const uint8_t* registers;
    std::vector<uint8_t> bytes;
    bool holds(const void* p, size_t n) const { return registers <= p && (const uint8_t*)p + n <= registers + bytes.size(); }
    bool overlaps(const HandedOver& other) const {
        return registers < other.registers + other.bytes.size() && other.registers < registers + bytes.size();
    }
    bool unchanged(const void* p, size_t n) const { return memcmp(p, &bytes[size_t((const uint8_t*)p - registers)], n) == 0; }
};

// One warpgroup's products in their order, and where its waits stand.
struct Warpgroup final : Waitable {
    using Group = std::vector<std::unique_ptr<Product>>;
    std::map<const float*, Accumulators> accumulators;
    Group open;
    std::deque<Group> groups;
    std::vector<HandedOver> named[128], handed_over[128];     // for the next fence, and in those before
    uint64_t fences = 0, waits = 0, last_fence = 0;      // last_fence: the number of waits before it
    ThreadSet waiting;
    std::vector<InFlight::Handle> read;                  // by products that the current wait has handed back
    unsigned returned = 0;                               // warps that have come back from it
    uint32_t issued = 0, retired = 0;                    // products, counted: started, handed back
    uint32_t step = 0;                                   // of the newest one

    bool finished(size_t pending) const {
        for (size_t i = 0; i + pending < groups.size(); ++i)
            for (const auto& product : groups[i])
                if (!product->done) return false;
        return true;
    }
    Product* next() const {
        for (const Group& group : groups)
            for (const auto& product : group)
                if (!product->done) return product.get();
        return nullptr;
    }
    std::string name() const override { return "wgmma_wait"; }
    std::string state() const override { return std::to_string(groups.size()) + " groups under way"; }
};

struct Warpgroups final : State {
    Warpgroup of[8];

    void block_finished() override {
        for (Warpgroup& warpgroup : of) {
            for (const auto& product : warpgroup.open)
                fail("AsyncMisuse", product->site, "a WGMMA in no group when the block ended: wgmma_commit is missing");
            for (const auto& group : warpgroup.groups)
                for (const auto& product : group)
                    fail("AsyncMisuse", product->site, "the block ended, and nobody has waited for this WGMMA");
        }
    }
};

static Warpgroup& warpgroup_of(const Collective& call) { return block_state<Warpgroups>().of[call.first_warp / 4]; }

// ---- the layout of a fragment: register i of thread t (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16") ----

static unsigned row_of(unsigned thread, unsigned i) { return thread / 32 * 16 + thread % 32 / 4 + (i >> 1 & 1) * 8; }
static unsigned column_of(unsigned thread, unsigned i) { return i / 4 * 8 + thread % 4 * 2 + (i & 1); }

static void gather(Accumulators& d) {
    for (unsigned t = 0; t < 128; ++t)
        for (unsigned i = 0; i < unsigned(d.n) / 2; i += 2)
            memcpy(&d.tile[row_of(t, i) * unsigned(d.n) + column_of(t, i)], &d.of[t][i], 2 * sizeof(float));
}

static void scatter(const Accumulators& d) {
    for (unsigned t = 0; t < 128; ++t)
        for (unsigned i = 0; i < unsigned(d.n) / 2; i += 2)
            memcpy(&d.of[t][i], &d.tile[row_of(t, i) * unsigned(d.n) + column_of(t, i)], 2 * sizeof(float));
}

static bool holds(const Accumulators& d) {               // what the last wait handed back
    for (unsigned t = 0; t < 128; ++t)
        for (unsigned i = 0; i < unsigned(d.n) / 2; i += 2)
            if (memcmp(&d.of[t][i], &d.tile[row_of(t, i) * unsigned(d.n) + column_of(t, i)], 2 * sizeof(float))) return false;
    return true;
}

static bool poisoned(const Accumulators& d) {
    for (unsigned t = 0; t < 128; ++t)
        for (int i = 0; i < d.n / 2; ++i)
            if (float_bits(d.of[t][i]) != nobodys) return false;
    return true;
}

// A from registers: thread t holds 4 bytes of row t/4 (of its warp's 16) and of the row 8 below, and 16 bytes further on.
static std::vector<float> read_fragments(const Collective& call, ptx::Format format) {
    const unsigned k = format == ptx::Format::e4m3 ? 32 : 16;
    std::vector<float> a(64 * k);
    for (unsigned t = 0; t < 128; ++t) {
        const uint32_t* r = call.of<ptx::Wgmma>(t)->r;
        uint8_t bytes[16];
        memcpy(bytes, r, 16);
        float values[16];
        decode(bytes, values, k / 2, format);
        const unsigned n = k / 8;                        // elements of a register
        for (unsigned i = 0; i < 4; ++i)
            memcpy(&a[row_of(t, (i & 1) * 2) * k + i / 2 * (k / 2) + t % 4 * n], &values[i * n], n * sizeof(float));
    }
    return a;
}

// ---- the product ----

typedef float Lanes __attribute__((vector_size(16), aligned(4), may_alias));

// d[64][n] += a[64][k] b[k][n], each sum in the order of k.
static void multiply(float* d, const float* a, const float* b, unsigned n, unsigned k) {
    for (unsigned m = 0; m < 64; ++m)
        for (unsigned j = 0; j < n; j += 8) {
            auto* sum = reinterpret_cast<Lanes*>(d + m * n + j);
            Lanes low = sum[0], high = sum[1];
            for (unsigned i = 0; i < k; ++i) {
                const auto* row = reinterpret_cast<const Lanes*>(b + i * n + j);
                low += a[m * k + i] * row[0];
                high += a[m * k + i] * row[1];
            }
            sum[0] = low;
            sum[1] = high;
        }
}

static void perform(Product& p) {
    if (!p.b.unchanged() || (!p.registers && !p.a.unchanged()))
        fail("AsyncMisuse", p.site, "shared memory that this WGMMA reads was written before it was waited for");
    const unsigned n = unsigned(p.d->n), k = p.b.k();
    std::vector<float> a(64 * k), b(k * n);
    if (p.registers) a = p.fragments;
    else p.a.decode(a.data(), true);
    p.b.decode(b.data(), false);
    if (!p.accumulate) std::fill(p.d->tile.begin(), p.d->tile.end(), 0.0f);
    multiply(p.d->tile.data(), a.data(), b.data(), n, k);
    p.done = true;
}

// ---- issue ----

static void check_same(const Collective& call) {
    const ptx::Wgmma& first = *call.of<ptx::Wgmma>(0);
    for (unsigned t = 1; t < 128; ++t) {
        const ptx::Wgmma& other = *call.of<ptx::Wgmma>(t);
        const char* what = other.a != first.a ? "descriptors of A" : other.b != first.b ? "descriptors of B"
                         : other.accumulate != first.accumulate ? "values of `accumulate`"
                         : other.n != first.n || other.format != first.format || !other.r != !first.r ? "instructions" : nullptr;
        if (what)
            fail("AsyncMisuse", call.sites[t], "wgmma: threads 0 and %u of warps %u-%u have different %s", t, call.first_warp,
                 call.first_warp + 3, what);
    }
}

static Accumulators& accumulators_of(const Collective& call, Warpgroup& warpgroup) {
    const ptx::Wgmma& first = *call.of<ptx::Wgmma>(0);
    Accumulators& d = warpgroup.accumulators[first.d];
    if (d.under_way && d.n != first.n)
        fail("AsyncMisuse", call.sites[0], "wgmma with N = %d on accumulators that one with N = %d is still changing", first.n,
             d.n);
    if (d.n != first.n) d.written_at = 0;                // other registers, at the same place
    d.n = first.n;
    for (unsigned t = 0; t < 128; ++t) d.of[t] = call.of<ptx::Wgmma>(t)->d;
    d.tile.resize(64 * size_t(d.n));
    return d;
}

// The registers of thread t: named in a fence, and not written since. The name is what keeps the compiler from moving a
// write to the other side of it.
static void check_named(const Collective& call, const Warpgroup& warpgroup, unsigned t, const void* registers, size_t bytes,
                        const char* what) {
    for (const HandedOver& h : warpgroup.handed_over[t]) {
        if (!h.holds(registers, bytes)) continue;
        if (h.unchanged(registers, bytes)) return;
        fail("AsyncMisuse", call.sites[t], "the %s were written after the wgmma_fence that handed them over", what);
    }
    fail("AsyncMisuse", call.sites[t], "the %s were named in no wgmma_fence: it may come before what writes them", what);
}

// Accumulators that go on where the last product left them need no fence.
static void check_handed_over(const Collective& call, const Warpgroup& warpgroup, const Accumulators& d) {
    const ptx::Wgmma& first = *call.of<ptx::Wgmma>(0);
    const bool goes_on = d.under_way || (first.accumulate && d.written_at && holds(d));
    for (unsigned t = 0; t < 128; ++t) {
        const ptx::Wgmma& mine = *call.of<ptx::Wgmma>(t);
        if (mine.r) check_named(call, warpgroup, t, mine.r, 16, "A fragments");
        if (!goes_on) check_named(call, warpgroup, t, mine.d, unsigned(d.n) / 2 * sizeof(float), "accumulators");
    }
}

// Registers may be handed over only behind a fence that comes after the program's last use of them. Their use cannot be
// seen; but a wait that gave them back, and new contents, can.
static void check_fence(const Collective& call, const Warpgroup& warpgroup, const Accumulators& d) {
    const ptx::Wgmma& first = *call.of<ptx::Wgmma>(0);
    Site site = call.sites[0];
    if (warpgroup.fences == 0)
        fail("AsyncMisuse", site, "wgmma without wgmma_fence: the registers of warps %u-%u may not be ready", call.first_warp,
             call.first_warp + 3);
    bool fenced = warpgroup.last_fence == warpgroup.waits;
    if (!fenced && first.r) fail("AsyncMisuse", site, "wgmma with A in registers, and no wgmma_fence since the last wgmma_wait");
    if (d.under_way) {
        if (!poisoned(d)) fail("AsyncMisuse", site, "the accumulators of a WGMMA were written before it was waited for");
    } else if (!fenced && (d.written_at == 0 || !holds(d))) {
        fail("AsyncMisuse", site, "the accumulators were touched after the last wgmma_wait, and no wgmma_fence came between");
    }
}

static void check_fragments(const Collective& call, const Warpgroup& warpgroup) {
    const uint32_t* r = call.of<ptx::Wgmma>(0)->r;
    auto check = [&](const Warpgroup::Group& group) {
        for (const auto& product : group)
            if (r && product->registers == r && memcmp(r, product->first_registers, sizeof product->first_registers))
                fail("AsyncMisuse", call.sites[0], "the A fragments of the WGMMA at %s were written before it was waited for",
                     place(product->site).c_str());
    };
    for (const auto& group : warpgroup.groups) check(group);
    check(warpgroup.open);
}

static void reserve(Product& p) {
    std::vector<uint32_t> chunks;
    for (const Operand* operand : {&p.a, &p.b})
        for (size_t i = 0; i < operand->chunks.size(); ++i) chunks.push_back(operand->addresses[i] / 16);
    p.use = block_state<InFlight>().begin("the wgmma", InFlight::Kind::reads, std::move(chunks), p.site);
    AsyncProxy& proxy = block_state<AsyncProxy>();
    for (const Operand* operand : {&p.a, &p.b})
        for (size_t i = 0; i < operand->chunks.size(); ++i)
            proxy.read(operand->chunks[i], operand->addresses[i], 16, "the wgmma", p.site);
}

// The products read their operands until each warp has waited for them.
static void watch(const Collective& call, const Product& p, Warpgroup& warpgroup) {
    RaceCheck* check = races();
    if (!check) return;
    RaceCheck::Read read;
    auto& starters = read.starters;                          // threads that know the same count once
    for (unsigned t = 0; t < 128; ++t) {
        const ThreadOrder* order = call.fiber(t).order;
        const ThreadOrder* last = starters.empty() ? nullptr : starters.back();
        if (!last || order->known != last->known || order->fenced != last->fenced) starters.push_back(order);
    }
    const uint32_t clock = check->tensor_clock(block().rank, call.first_warp);
    read.touch = {RaceCheck::offset(p.site), p.number, 15u << clock % 32, 0, uint16_t(clock / 32), Toucher::wgmma, false};
    for (uint32_t address : p.b.addresses) check->start_read(read, block(), address, 16);
    for (size_t i = 0; i < p.a.addresses.size(); ++i) {      // a warp multiplies sixteen rows of A
        read.touch.lanes = 1u << (clock % 32 + (p.a.mn_major ? i / 16 * 8 : i / 2) / 16);
        check->start_read(read, block(), p.a.addresses[i], 16);
    }
    for (unsigned t = 0; t < 128; t += 32) note_meet(call.fiber(t), Meet::start, warpgroup, p.number, p.site, 0, -1);
    warpgroup.step = std::max(warpgroup.step, call.fiber(0).order->step) + 1;
}

// From here to the wait the accumulators hold NaN.
static void take_over(Warpgroup& warpgroup, Accumulators& d, bool accumulate) {
    if (accumulate) gather(d);
    for (unsigned t = 0; t < 128; ++t) {
        memset(d.of[t], 0xFF, unsigned(d.n) / 2 * sizeof(float));
    }
}

static void issue(Collective& call) {
    check_same(call);
    const ptx::Wgmma& first = *call.of<ptx::Wgmma>(0);
    Warpgroup& warpgroup = warpgroup_of(call);
    Accumulators& d = accumulators_of(call, warpgroup);
    check_fence(call, warpgroup, d);
    check_fragments(call, warpgroup);
    check_handed_over(call, warpgroup, d);
    auto product = std::make_unique<Product>();
    product->d = &d;
    product->registers = first.r;
    product->accumulate = first.accumulate;
    product->site = call.sites[0];
    product->b = Operand("B", first.b, unsigned(first.n), first.b_mn_major, first.format, product->site);
    if (first.r) {
        product->fragments = read_fragments(call, first.format);
        memcpy(product->first_registers, first.r, sizeof product->first_registers);
    } else {
        product->a = Operand("A", first.a, 64, first.a_mn_major, first.format, product->site);
    }
    product->number = ++warpgroup.issued;
    reserve(*product);
    watch(call, *product, warpgroup);
    if (d.under_way++ == 0) take_over(warpgroup, d, first.accumulate);
    warpgroup.open.push_back(std::move(product));
}

// ---- fence, commit, wait ----

static void fence(Collective& call) {
    Warpgroup& warpgroup = warpgroup_of(call);
    ++warpgroup.fences;
    warpgroup.last_fence = warpgroup.waits;
    for (unsigned t = 0; t < 128; ++t) {
        auto& all = warpgroup.handed_over[t];
        for (HandedOver& h : warpgroup.named[t]) {
            all.erase(std::remove_if(all.begin(), all.end(), [&](const HandedOver& old) { return old.overlaps(h); }), all.end());
            all.push_back(std::move(h));
        }
        warpgroup.named[t].clear();
    }
}

static void commit(Collective& call) {
    Warpgroup& warpgroup = warpgroup_of(call);
    for (const auto& product : warpgroup.open)
        defer(product->site, [&warpgroup, &block = block()] {
            perform(*warpgroup.next());
            wake(block, warpgroup.waiting);
        });
    warpgroup.groups.push_back(std::move(warpgroup.open));
    warpgroup.open.clear();
}

static void begin_wait(Collective& call) {
    Warpgroup& warpgroup = warpgroup_of(call);
    if (!warpgroup.open.empty())
        fail("AsyncMisuse", call.sites[0], "wgmma_wait, but the WGMMA at %s is in no group: wgmma_commit is missing",
             place(warpgroup.open[0]->site).c_str());
    ++warpgroup.waits;
    warpgroup.returned = 0;
}

// Hands back what the groups beyond the newest `pending` have computed. Every thread comes here; the first one does it.
// The tiles stay reserved until each of the four warps has come back: a warp's wait is its own.
static void retire(Warpgroup& warpgroup, size_t pending) {
    for (; warpgroup.groups.size() > pending; warpgroup.groups.pop_front())
        for (const auto& product : warpgroup.groups.front()) {
            warpgroup.read.push_back(product->use);
            warpgroup.retired = product->number;
            Accumulators& d = *product->d;
            if (--d.under_way) continue;
            if (!poisoned(d))
                fail("AsyncMisuse", product->site, "the accumulators of this WGMMA were written before it was waited for");
            scatter(d);
            d.written_at = warpgroup.waits;
        }
    warpgroup.returned |= 1u << self().warp % 4;
    if (warpgroup.returned != 15) return;
    for (InFlight::Handle use : warpgroup.read) block_state<InFlight>().end(use);
    warpgroup.read.clear();
}

static const Product& changing(const Warpgroup& warpgroup, const Accumulators& d) {
    for (const auto& group : warpgroup.groups)
        for (const auto& product : group)
            if (product->d == &d) return *product;
    return **std::find_if(warpgroup.open.begin(), warpgroup.open.end(), [&](const auto& product) { return product->d == &d; });
}

void check_local(const void* address, size_t bytes, Access kind, Site site) {
    static const int slot = slot_of<Warpgroups>();
    auto* state = static_cast<Warpgroups*>(state_slot(block(), slot).get());
    if (!state) return;
    const Warpgroup& warpgroup = state->of[self().warp / 4];
    const char* p = static_cast<const char*>(address);
    for (const auto& [first, d] : warpgroup.accumulators) {
        const char* begin = reinterpret_cast<const char*>(d.of[self().index % 128]);
        if (d.under_way == 0 || p + bytes <= begin || p >= begin + unsigned(d.n) / 2 * sizeof(float)) continue;
        fail("AsyncMisuse", site, "%s accumulators that the WGMMA at %s is still changing: wgmma_wait comes first",
             kind == Access::read ? "reads" : "writes", place(changing(warpgroup, d).site).c_str());
    }
}

namespace ptx {

void wgmma_hand_over(const void* registers, uint32_t bytes) {
    const auto* p = static_cast<const uint8_t*>(registers);
    block_state<Warpgroups>().of[self().warp / 4].named[self().index % 128].push_back({p, {p, p + bytes}});
}

void wgmma_fence() { warpgroup_collective("wgmma_fence", fence, nullptr, EMU_SITE); }
void wgmma(const Wgmma& operands) { warpgroup_collective("wgmma", issue, const_cast<Wgmma*>(&operands), EMU_SITE); }
void wgmma_commit() { warpgroup_collective("wgmma_commit", commit, nullptr, EMU_SITE); }

void wgmma_wait(int pending) {
    Site site = EMU_SITE;
    warpgroup_collective("wgmma_wait", begin_wait, nullptr, site);
    Warpgroup& warpgroup = block_state<Warpgroups>().of[self().warp / 4];
    while (!warpgroup.finished(size_t(pending))) wait_on(warpgroup, warpgroup.waiting, site);
    retire(warpgroup, size_t(pending));
    if (RaceCheck* check = races()) {
        ThreadOrder& order = *self().order;
        note_meet(self(), Meet::wait, warpgroup, warpgroup.retired, site, warpgroup.step, -1);
        check->learning.learn(order, check->tensor_clock(block().rank, self().warp), warpgroup.retired);
        order.step = std::max(order.step, warpgroup.step) + 1;
    }
}

void wgmma_check_free(const void* registers) {
    for (const auto& [first, d] : block_state<Warpgroups>().of[self().warp / 4].accumulators)
        if (d.under_way && d.of[self().index % 128] == registers)
            fail("AsyncMisuse", EMU_SITE, "wgmma_wait names accumulators that a WGMMA of a newer group is still changing");
}

}  // namespace ptx
}  // namespace emu
