// The callbacks compilers emit. -fsanitize=thread announces every access with its size; we link without its runtime and
// take the calls ourselves: the return address is the access. -fsanitize=alignment calls only about a misaligned address.
#include "access.h"

#define EMU_CALLBACK extern "C" __attribute__((visibility("default")))
#define EMU_SIZE(prefix, bytes)                                                                                       \
    EMU_CALLBACK void __tsan_##prefix##read##bytes(void* p) { instrumented_access(p, bytes, Access::read, EMU_SITE); } \
    EMU_CALLBACK void __tsan_##prefix##write##bytes(void* p) { instrumented_access(p, bytes, Access::write, EMU_SITE); }

using namespace emu;

EMU_SIZE(, 1) EMU_SIZE(, 2) EMU_SIZE(, 4) EMU_SIZE(, 8) EMU_SIZE(, 16)
EMU_SIZE(unaligned_, 2) EMU_SIZE(unaligned_, 4) EMU_SIZE(unaligned_, 8) EMU_SIZE(unaligned_, 16)
EMU_SIZE(volatile_, 1) EMU_SIZE(volatile_, 2) EMU_SIZE(volatile_, 4) EMU_SIZE(volatile_, 8) EMU_SIZE(volatile_, 16)

EMU_CALLBACK void __tsan_read_range(void* p, long bytes) { instrumented_access(p, size_t(bytes), Access::read, EMU_SITE); }
EMU_CALLBACK void __tsan_write_range(void* p, long bytes) { instrumented_access(p, size_t(bytes), Access::write, EMU_SITE); }
// Copies and fills. g++ calls the first name of each; clang leaves them to the C library's functions, and the kernel is linked
// so that it comes to the second one instead.
#define EMU_COPY(name, builtin)                                                  \
    EMU_CALLBACK void* name(void* to, const void* from, size_t bytes) {          \
        instrumented_access(from, bytes, Access::read, EMU_SITE);                \
        instrumented_access(to, bytes, Access::write, EMU_SITE);                 \
        return builtin(to, from, bytes);                                         \
    }
#define EMU_FILL(name)                                                           \
    EMU_CALLBACK void* name(void* to, int value, size_t bytes) {                 \
        instrumented_access(to, bytes, Access::write, EMU_SITE);                 \
        return __builtin_memset(to, value, bytes);                               \
    }
EMU_COPY(__tsan_memcpy, __builtin_memcpy)
EMU_COPY(__wrap_memcpy, __builtin_memcpy)
EMU_COPY(__tsan_memmove, __builtin_memmove)
EMU_COPY(__wrap_memmove, __builtin_memmove)
EMU_FILL(__tsan_memset)
EMU_FILL(__wrap_memset)
EMU_CALLBACK void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
EMU_CALLBACK void __tsan_atomic_signal_fence(int) {}
EMU_CALLBACK void __tsan_init() {}
EMU_CALLBACK void __tsan_func_entry(void*) {}
EMU_CALLBACK void __tsan_func_exit() {}
EMU_CALLBACK void __tsan_vptr_update(void*, void*) {}
EMU_CALLBACK void __tsan_vptr_read(void*) {}

// What the undefined-behaviour sanitizer's runtime calls TypeMismatchData and TypeDescriptor.
struct TypeDescriptor { uint16_t kind, info; char name[1]; };
struct TypeMismatch {
    struct { const char* file; uint32_t line, column; } location;
    const TypeDescriptor* type;
    unsigned char log_alignment, check;
};

EMU_CALLBACK void __ubsan_handle_type_mismatch_v1(TypeMismatch* what, void* p) {
    misaligned_access(p, size_t(1) << what->log_alignment, what->type->name, EMU_SITE);
}
EMU_CALLBACK void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* what, void* p) {
    misaligned_access(p, size_t(1) << what->log_alignment, what->type->name, EMU_SITE);
}
