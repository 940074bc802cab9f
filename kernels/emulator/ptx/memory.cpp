// Shared addresses, one thread of a warp, and ordered accesses to global memory.
#include "../grid.h"
#include "in_flight.h"
#include "instructions.h"
#include "mbarriers.h"
#include "../memory.h"

namespace emu::ptx {

uint32_t smem_u32(const void* s_pointer) { return shared_address(s_pointer, EMU_SITE); }

// The GPU elects the same lane every time for the same lanes; which one is its secret. Here it is the first.
static void elect(Collective& call) { *call.of<bool>(unsigned(__builtin_ctz(call.mask[0]))) = true; }

bool elect_one() {
    bool elected = false;
    warp_collective("elect_one", ~0u, elect, &elected, EMU_SITE);
    return elected;
}

void fence_proxy_async() {
    block_state<AsyncProxy>().fence();
    block_state<MBarriers>().fence(self().index);
    if (self().order) self().order->fence();
}

// A block in which nobody has waited for the kernels ahead must not touch what they write.
struct Dependency final : State { bool waited = false, let_others_begin = false; };

void griddep_wait() {
    auto& block = block_state<Dependency>();
    if (!block.waited && !block.let_others_begin) ++worker->grid.spec.arguments->blocks_behind;
    block.waited = true;
}

void griddep_launch_dependents() { block_state<Dependency>().let_others_begin = true; }

static void watch_ordered(const void* g_word, Access kind, Site site) {
    const Fiber& me = self();
    if (!me.order) return;
    ++me.order->step;
    worker->grid.global_races->access(me, g_word, 4, Toucher::atomic, kind != Access::read, site);
}

// Whoever waits for another block polls: give the others their turn.
int ld_acquire(const int* g_flag) {
    const Site site = EMU_SITE;
    access(g_flag, 4, Access::atomic, site);
    yield();
    watch_ordered(g_flag, Access::read, site);
    const OrderedAccess together(g_flag, {.reads = true, .acquires = true, .writes = false, .releases = false, .replaces = false});
    return __atomic_load_n(g_flag, __ATOMIC_ACQUIRE);
}

void st_release(int* g_flag, int value) {
    const Site site = EMU_SITE;
    access(g_flag, 4, Access::atomic, site);
    watch_ordered(g_flag, Access::write, site);
    const OrderedAccess together(g_flag, {.reads = false, .acquires = false, .writes = true, .releases = true, .replaces = true});
    __atomic_store_n(g_flag, value, __ATOMIC_RELEASE);
}

void red_release(int* g_counter, int value) {
    const Site site = EMU_SITE;
    access(g_counter, 4, Access::atomic, site);
    watch_ordered(g_counter, Access::write, site);
    const OrderedAccess together(g_counter, {.reads = false, .acquires = false, .writes = true, .releases = true, .replaces = false});
    __atomic_fetch_add(g_counter, value, __ATOMIC_RELEASE);
}

}  // namespace emu::ptx

namespace emu {

void check_dependency(const void* p, const char* does, Site site) {
    if (!worker->grid.spec.arguments->pending(p) || block_state<ptx::Dependency>().waited) return;
    fail("AsyncMisuse", site, "%s what a kernel ahead may still be writing, %s: griddep_wait comes first", does,
         describe_address(p).c_str());
}

}  // namespace emu
