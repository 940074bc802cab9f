// What the body of an instruction may use. Bodies are compiled once, into the runtime, without instrumentation.
//
// A body is a function of namespace emu, declared with EMU_API where kernels can see it and defined in a .cpp
// below kernels/emulator/. It runs on the stack of the calling CUDA thread. It
//   a) meets other threads           collective()                   a warp, or a warpgroup of four
//                                    arrive(), Barrier              a counted set of threads
//   b) waits for a condition         wait_on(), wake()              with a text for the deadlock report
//   c) starts asynchronous work      defer()                        the schedule decides when it happens
//   d) reports what it touches       access()                       before touching it
//   e) refuses                       fail()                         an error at the caller's source line
//   f) converts shared addresses     shared_address(), shared_pointer()
//   g) keeps state                   block_state<T>()               one T per block, made on first use
//
// Only one thread of a block, and of a cluster, runs at a time, and none is interrupted inside a body: no locks.
// Other blocks run at the same time on other OS threads: global memory they share needs atomics.
#pragma once
#include "include/abi.h"
#include "fiber.h"
#include "order.h"
#include "thread_set.h"
#include <functional>
#include <memory>
#include <string>

namespace emu {

// Where in the kernel something happened: the address a call returns to. Take it in the function that the kernel
// calls, not further down. Messages show it as the source line outside kernels/emulator/ and kernels/common/ptx/.
using Site = uintptr_t;
#define EMU_SITE ((emu::Site)__builtin_return_address(0))

struct Block;
struct Collective;
struct ThreadOrder;

// Something threads wait for. A deadlock report says "name(): state()", as in "named barrier 1: 32 of 64 threads arrived".
class Waitable {
public:
    virtual std::string name() const = 0;
    virtual std::string state() const = 0;

protected:
    ~Waitable() = default;
};

// One CUDA thread.
struct Fiber : Thread {
    Block* block = nullptr;
    Context context;
    bool exited = false;
    const Waitable* waiting_on = nullptr;    // what this thread waits for, and since which line
    Site waiting_site = 0;
    int result = 0;                          // what a barrier with a reduction hands back
    ThreadOrder* order = nullptr;            // what it knows of the others (order.h), where races are looked for
};

// The calling thread and its block. Inside a deferred action: the thread that deferred it.
Fiber& self();
Block& block();

// ---- a) meeting --------------------------------------------------------------------------------------------

// A set of lanes executing one instruction together. The last to arrive runs `body` once for all; each thread's
// `arguments` stay on its own stack meanwhile, so a body reads operands and writes results through them.
struct Collective final : Waitable {
    using Body = void (*)(Collective&);
    const char* instruction;          // for messages
    Body body;
    unsigned first_warp, warps;       // 1, or 4 for a warpgroup
    uint32_t mask[4], arrived[4];     // lanes named, lanes here, per warp
    void* arguments[128];             // by thread of the set; null for a lane that is not there
    Site sites[128];

    template <class T> T* of(unsigned i) const { return static_cast<T*>(arguments[i]); }
    Fiber& fiber(unsigned i) const;
    std::string name() const override;
    std::string state() const override;
};

// Meets the lanes of `mask` in the calling warp. Lanes that have exited are not waited for. Lanes of one mask that
// execute different collectives are an error.
void warp_collective(const char* name, uint32_t mask, Collective::Body body, void* arguments, Site site);

// Meets all 128 threads of the calling warpgroup.
void warpgroup_collective(const char* name, Collective::Body body, void* arguments, Site site);

// A barrier that counts threads. Kernels have sixteen by number (bar_sync, bar_arrive); number 0 is __syncthreads.
struct Barrier final : Waitable {
    int id = 0;
    unsigned expected = 0;            // 0: not in use
    bool whole_block = false;         // expects every thread that has not exited
    ThreadSet arrived, waiting;
    unsigned count = 0, votes = 0;    // of a reduction
    unsigned generation = 0;
    Meeting meeting;
    Reduce reduce = Reduce::count;
    std::string name() const override;
    std::string state() const override;
};

// ---- b) waiting --------------------------------------------------------------------------------------------

// Adds the caller to `waiters` and blocks it until someone wakes them.
void wait_on(const Waitable& object, ThreadSet& waiters, Site site);

// Makes every thread of `waiters` ready and empties the set. Does not switch threads.
void wake(Block& block, ThreadSet& waiters);

// The same for bodies that keep their own record of who waits.
void suspend(const Waitable& object, Site site);
void make_ready(Block& block, unsigned warp, uint32_t lanes);

// ---- c) asynchronous work ----------------------------------------------------------------------------------

// Runs `action` later: as late as possible under the forward schedule (when no thread can run), as soon as possible
// under the reverse one, at any time and in any order under a random one. An action may wake, fail and defer; it
// must not wait. A thread's exit does not wait for its actions; the block's end does.
void defer(Site site, std::function<void()> action);

// ---- d) memory ---------------------------------------------------------------------------------------------

enum class Access : uint8_t { read, write, atomic };
enum class Proxy : uint8_t { generic, async };     // async: TMA and WGMMA, which a proxy fence orders

// To be called before the body touches global or shared memory. Fails if the bytes lie outside every argument and
// outside shared memory, or (check "init") if shared bytes are read before they were written.
void access(const void* address, size_t bytes, Access kind, Site site, Proxy proxy = Proxy::generic);

// ---- e) errors ---------------------------------------------------------------------------------------------

// Ends the launch. `kind` is the name of a Python class of flashmoe_nb.emulator. Kernel, block, thread and source
// line are added; the text should say what was asked and what holds. Inside a deferred action, site 0 stands for
// the place that deferred it.
[[noreturn]] void fail(const char* kind, Site site, const char* format, ...) __attribute__((format(printf, 3, 4)));

// A place for the middle of a message; replaced by "cell In[7], line 3" or "kernels/…:37".
std::string place(Site site);

// "warps 0, 2 (lanes 0-15), 3"
std::string describe(const Block& block, const ThreadSet& threads);

// ---- f) shared addresses -----------------------------------------------------------------------------------

// The 32-bit address of a pointer into the calling block's shared memory, and back. As on Hopper, addresses start
// at 1024, statically declared arrays first, dynamic memory after them. Both fail on what is not shared memory.
uint32_t shared_address(const void* pointer, Site site);
void* shared_pointer(uint32_t address, Site site);
// Fails if a dependent launch touches what the kernels ahead write, before the block has waited for them (griddep_wait).
void check_dependency(const void* pointer, const char* does, Site site);

std::string describe_address(const void* pointer);     // "shared memory + 0x40 (Ks)" or "argument 2 + 0x10"

// ---- g) state ----------------------------------------------------------------------------------------------

struct State {
    virtual ~State() = default;
    virtual void block_finished() {}       // every thread has exited, every action has run; may fail
};

int new_state_slot();
std::unique_ptr<State>& state_slot(Block& block, int slot);

template <class T> int slot_of() {
    static const int slot = new_state_slot();
    return slot;
}

template <class T> T& block_state(Block& of = block()) {
    auto& state = state_slot(of, slot_of<T>());
    if (!state) state = std::make_unique<T>();
    return static_cast<T&>(*state);
}

// The blocks of the calling thread's cluster, by rank; a launch without clusters has one.
unsigned cluster_size();
unsigned cluster_rank();
Block& cluster_block(unsigned rank);
// A pointer into the calling block's shared memory, moved to the same place of another block of the cluster.
void* map_shared(const void* pointer, unsigned rank, Site site);

}  // namespace emu
