#include "fault.h"
#include "grid.h"
#include "module.h"
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <mutex>
#include <new>

namespace emu {

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static constexpr size_t alternate_bytes = 64 << 10;
static std::mutex mutex;
static int users = 0;
static struct sigaction before[4], before_nudge;

static Site faulting_instruction(const ucontext_t& context) {
#if defined(__x86_64__)
    return Site(context.uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return Site(context.uc_mcontext.pc);
#else
    (void)context;
    return 0;
#endif
}

static bool was_write(const ucontext_t& context) {
#if defined(__x86_64__)
    return context.uc_mcontext.gregs[REG_ERR] & 2;
#else
    (void)context;
    return false;
#endif
}

static void pass_on(int signal, siginfo_t* info, void* context) {
    for (int i = 0; i < 4; ++i) {
        if (signals[i] != signal) continue;
        if (before[i].sa_flags & SA_SIGINFO) return before[i].sa_sigaction(signal, info, context);
        if (before[i].sa_handler == SIG_IGN) return;
        if (before[i].sa_handler != SIG_DFL) return before[i].sa_handler(signal);
        sigaction(signal, &before[i], nullptr);      // the instruction faults again, with nobody to catch it
    }
}

// Notes what happened and abandons the fiber; the worker makes the message on its own stack.
static void handle(int signal, siginfo_t* info, void* context) {
    Worker* w = worker;
    if (!w || !w->current) return pass_on(signal, info, context);
    const ucontext_t& machine = *static_cast<ucontext_t*>(context);
    const bool has_address = info->si_code != SI_KERNEL;      // an address that the MMU cannot even look at is not reported
    w->fault = {signal, faulting_instruction(machine), info->si_addr, was_write(machine), has_address};
    switch_context(w->abandoned, w->main);
}

// A nudge from nudge() in launch.cpp. Inside the runtime there is nothing to do: its next switch looks by itself.
static void handle_nudge(int, siginfo_t*, void* context) {
    Worker* w = worker;
    if (!w || !w->current || w->action) return;
    if (!w->grid.spec.module->contains(reinterpret_cast<void*>(faulting_instruction(*static_cast<ucontext_t*>(context))))) return;
    if (w->grid.stopped(w->block)) leave();
    preempt();
}

FaultHandlers::FaultHandlers() {
    std::lock_guard<std::mutex> guard(mutex);
    if (users++) return;
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; ++i) sigaction(signals[i], &action, &before[i]);
    action.sa_sigaction = handle_nudge;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;      // on the thread's own stack, where it may stay suspended
    sigaction(SIGURG, &action, &before_nudge);
}

FaultHandlers::~FaultHandlers() {
    std::lock_guard<std::mutex> guard(mutex);
    if (--users) return;
    for (int i = 0; i < 4; ++i) sigaction(signals[i], &before[i], nullptr);
    sigaction(SIGURG, &before_nudge, nullptr);
}

AlternateStack::AlternateStack() {
    memory_ = mmap(nullptr, alternate_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    stack_t stack{};
    stack.ss_sp = memory_;
    stack.ss_size = alternate_bytes;
    sigaltstack(&stack, nullptr);
}

AlternateStack::~AlternateStack() {
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
    munmap(memory_, alternate_bytes);
}

}  // namespace emu
