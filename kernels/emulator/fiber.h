// A fiber is a stack and a saved stack pointer: what one CUDA thread becomes.
#pragma once
#include <cstddef>
#if !defined(__x86_64__) && !defined(__aarch64__)
#define EMU_UCONTEXT 1
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {

// Where an execution stands when it is not running.
struct Context {
#ifdef EMU_UCONTEXT
    ucontext_t machine;
#else
    void* stack_pointer = nullptr;
#endif
};

// Prepares `context` to run `entry` on the stack that ends at `top`. `entry` must never return.
void prepare(Context& context, char* bottom, char* top, void (*entry)());

// Saves where we stand in `from` and continues `to`.
#ifdef EMU_UCONTEXT
inline void switch_context(Context& from, Context& to) { swapcontext(&from.machine, &to.machine); }
#else
extern "C" void emu_switch(void** save, void* load);
inline void switch_context(Context& from, Context& to) { emu_switch(&from.stack_pointer, to.stack_pointer); }
#endif

// Stacks for `count` fibers, each above a guard area that turns an overflow into a fault.
class Stacks {
public:
    static constexpr size_t guard_bytes = 64 << 10;    // what -fstack-clash-protection assumes on aarch64
    static constexpr size_t stack_bytes = 192 << 10;

    explicit Stacks(int count);    // throws std::bad_alloc
    ~Stacks();
    Stacks(const Stacks&) = delete;

    int count() const { return count_; }
    char* bottom(int i) const { return memory_ + i * pitch + guard_bytes; }
    char* top(int i) const { return memory_ + (i + 1) * pitch; }
    bool contains(const void* address) const { return address >= memory_ && address < memory_ + count_ * pitch; }
    int owner(const void* address) const { return int(((const char*)address - memory_) / pitch); }
    bool in_guard(const void* address) const { return contains(address) && address < bottom(owner(address)); }

private:
    static constexpr size_t pitch = guard_bytes + stack_bytes;
    char* memory_;
    int count_;
};

}  // namespace emu
