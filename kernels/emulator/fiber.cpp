#include "fiber.h"
#include <sys/mman.h>
#include <cstdint>
#include <cstring>
#include <new>

// The switch saves what the calling convention asks a function to preserve; everything else the compiler
// has already saved, because it sees a call.
#if defined(__x86_64__)
asm(R"(
    .text
    .globl emu_switch
    .hidden emu_switch
    .type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch, .-emu_switch
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl emu_switch
    .hidden emu_switch
    .type emu_switch, %function
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8,  d9,  [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8,  d9,  [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emu_switch, .-emu_switch
)");
#endif

namespace emu {

void prepare(Context& context, char* bottom, char* top, void (*entry)()) {
#ifdef EMU_UCONTEXT
    getcontext(&context.machine);
    context.machine.uc_stack.ss_sp = bottom;
    context.machine.uc_stack.ss_size = size_t(top - bottom);
    context.machine.uc_link = nullptr;
    makecontext(&context.machine, entry, 0);
#else
    (void)bottom;
    void** frame = reinterpret_cast<void**>(uintptr_t(top) & ~uintptr_t(15));
#if defined(__x86_64__)
    frame -= 8;                                     // six registers, the return address, and the alignment a call leaves
    std::memset(frame, 0, 8 * sizeof(void*));
    frame[6] = reinterpret_cast<void*>(entry);
#else
    frame -= 20;                                    // as emu_switch lays them out; x30 is the return address
    std::memset(frame, 0, 20 * sizeof(void*));
    frame[11] = reinterpret_cast<void*>(entry);
#endif
    context.stack_pointer = frame;
#endif
}

Stacks::Stacks(int count) : count_(count) {
    void* memory = mmap(nullptr, count * pitch, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (int i = 0; i < count; ++i)
        if (mprotect(bottom(i), stack_bytes, PROT_READ | PROT_WRITE) != 0) {
            munmap(memory_, count * pitch);
            throw std::bad_alloc();
        }
}

Stacks::~Stacks() { munmap(memory_, count_ * pitch); }

}  // namespace emu
