// Judging accesses: those an instruction body reports, those of instrumented code, and those that faulted.
#include "access.h"
#include "grid.h"
#include "memory.h"
#include "module.h"
#include <signal.h>
#include <algorithm>

namespace emu {

static const char* verb(Access kind) { return kind == Access::read ? "reads" : kind == Access::write ? "writes" : "updates"; }

static std::string describe_shared(const SharedMemory& shared, const void* p) {
    const SharedMemory::Object* object = shared.nearest(p);
    if (!object) return "shared memory, of which this kernel has none";
    std::string what = object->name ? "the shared array '" + std::string(object->name) + "'" : "the dynamic shared memory";
    return position(static_cast<const char*>(p), object->begin, object->end) + ' ' + what + " (" +
           std::to_string(object->end - object->begin) + " bytes)";
}

std::string describe_address(const void* p) {
    const Worker& w = *worker;
    const Arguments& arguments = *w.grid.spec.arguments;
    if (reinterpret_cast<uintptr_t>(p) < 4096) return "at the null pointer";
    if (w.block.shared.contains(p) || w.block.shared.guards(p)) return describe_shared(w.block.shared, p);
    if (arguments.near(p)) return arguments.describe(p);
    if (w.stacks.contains(p)) return "in the local memory of thread " + std::to_string(w.stacks.owner(p));
    char text[64];
    snprintf(text, sizeof text, "at %p, which belongs to no argument", p);
    return text;
}

[[noreturn]] static void out_of_bounds(const void* p, size_t bytes, Access kind, Site site) {
    fail("OutOfBounds", site, "%s %zu bytes %s", verb(kind), bytes, describe_address(p).c_str());
}

static void check_shared(SharedMemory& shared, const void* p, size_t bytes, Access kind, Site site) {
    const unsigned checks = worker->grid.spec.checks;
    const SharedMemory::Object* object = shared.object(p);
    if (!object || static_cast<const char*>(p) + bytes > object->end) out_of_bounds(p, bytes, kind, site);
    if (!(checks & check_init)) return;
    if (kind != Access::write && !shared.was_written(p, bytes))
        fail("UninitialisedShared", site, "reads %zu bytes %s that no thread has written", bytes,
             describe_shared(shared, p).c_str());
    if (kind != Access::read) shared.mark_written(p, bytes);
}

static void check_global(const Worker& w, const void* p, size_t bytes, Access kind, Site site) {
    if (!w.action) check_dependency(p, kind == Access::read ? "reads" : "writes", site);
    const Arguments::Extent* extent = w.grid.spec.arguments->find(p, bytes);
    if (extent && (extent->writable || kind == Access::read)) return;
    if (extent) fail("OutOfBounds", site, "%s %zu bytes %s, which is const", verb(kind), bytes, describe_address(p).c_str());
    if (w.grid.spec.module->contains(p)) return;                     // constants and __device__ variables
    out_of_bounds(p, bytes, kind, site);
}

// The cluster's block whose shared memory holds the address: a pointer made by cluster_map leads to another block's.
static Block* block_with(Worker& w, const void* address) {
    if (w.block.shared.contains(address)) return &w.block;
    for (unsigned r = 0; r < w.grid.cluster_size && w.grid.cluster_size > 1; ++r)
        if (Block& other = cluster_block(r); other.shared.contains(address)) return &other;
    return nullptr;
}

static bool is_own_stack(const Worker& w, const void* p) {
    return w.current && w.stacks.contains(p) && w.stacks.owner(p) == int(w.current->index);
}

// threadIdx and its kin
static bool is_thread_record(const Worker& w, const void* p) {
    const Fiber* fibers = w.block.fibers.data();
    return p >= fibers && p < fibers + w.block.threads;
}

void access(const void* address, size_t bytes, Access kind, Site site, Proxy) {
    Worker& w = *worker;
    ++w.block.counters.accesses;
    if (Block* owner = block_with(w, address)) return check_shared(owner->shared, address, bytes, kind, site);
    if (!w.action && is_own_stack(w, address)) return;
    check_global(w, address, bytes, kind, site);
}

// Wider accesses than 16 bytes are copies of a struct: as many of 16 as there are.
static void count(Block& block, const Fiber& me, Space space, uint64_t where, size_t bytes, Access kind, Site site) {
    if (!block.counting) return;
    for (size_t done = 0; done < bytes; done += 16)
        block.counts.note(me.warp, me.lane, space, where + done, unsigned(std::min<size_t>(16, bytes - done)), kind, site);
}

static void watch_shared(Block& block, Block& owner, const void* p, size_t bytes, Access kind, Site site) {
    const Fiber& me = *worker->current;
    const uint32_t address = owner.shared.address(p);
    count(block, me, Space::shared, address, bytes, kind, site);
    if (!me.order) return;
    ++me.order->step;
    RaceCheck& check = *block.cluster->races;
    if (kind == Access::read) check.read(me, owner, address, unsigned(bytes), site);
    else check.write(me, owner, address, unsigned(bytes), site, kind == Access::atomic ? Toucher::atomic : Toucher::thread);
}

static void watch_global(Block& block, const void* p, size_t bytes, Access kind, Site site) {
    const Fiber& me = *worker->current;
    if (me.order) {
        ++me.order->step;
        const Toucher by = kind == Access::atomic ? Toucher::atomic : Toucher::thread;
        worker->grid.global_races->access(me, p, bytes, by, kind != Access::read, site);
    }
    count(block, me, Space::global, uint64_t(p), bytes, kind, site);
}

void watch_access(const void* address, size_t bytes, Access kind, Site site) {
    Worker& w = *worker;
    if (!w.block.counting || w.action || is_own_stack(w, address)) return;
    if (Block* owner = block_with(w, address)) watch_shared(w.block, *owner, address, bytes, kind, site);
    else watch_global(w.block, address, bytes, kind, site);
}

void instrumented_access(const void* address, size_t bytes, Access kind, Site site) {
    Worker* w = worker;
    if (!w || !w->current) return;
    if (is_own_stack(*w, address)) return check_local(address, bytes, kind, site);
    if (is_thread_record(*w, address)) return;
    ++w->block.counters.accesses;
    if (Block* owner = block_with(*w, address)) {
        if (const auto* object = owner->shared.object(address); object && object->is_compilers()) return;
        check_shared(owner->shared, address, bytes, kind, site);
        watch_shared(w->block, *owner, address, bytes, kind, site);
    } else {
        if (w->grid.spec.checks & check_memory) check_global(*w, address, bytes, kind, site);
        watch_global(w->block, address, bytes, kind, site);
    }
}

void misaligned_access(const void* address, size_t alignment, const char* type, Site site) {
    fail("MisalignedAccess", site, "accesses %s %s, an address that is no multiple of %zu", type,
         describe_address(address).c_str(), alignment);
}

void report_fault(Worker& w) {
    const Worker::Fault& f = w.fault;
    const Site site = f.pc + 1;                                      // sites are addresses behind an instruction
    const std::string where = f.has_address ? describe_address(f.address) : "at an address that cannot exist";
    const Arguments::Extent* extent = w.grid.spec.arguments->find(f.address, 1);
    if (f.signal == SIGFPE)
        note("DivisionByZero", site, "integer division by zero, whose result is undefined on a GPU");
    else if (f.signal == SIGILL)
        note("KernelFault", site, "reached code that cannot be reached without undefined behaviour");
    else if (w.stacks.in_guard(f.address))
        note("StackOverflow", site, "the local memory of a thread exceeds %zu KiB", Stacks::stack_bytes >> 10);
    else if (extent && f.write && !extent->writable)
        note("OutOfBounds", site, "writes %s, which is const", where.c_str());
    else
        note("OutOfBounds", site, "%s %s", verb(f.write ? Access::write : Access::read), where.c_str());
}

}  // namespace emu
