// The callbacks compilers emit. -fsanitize=thread announces every access with its size; we link without its runtime and
// take the calls ourselves: the return address is the access. -fsanitize=alignment calls only about a misaligned address.
#include "access.h"

#define EMU_CALLBACK extern "C" __attribute__((visibility("default")))
#define EMU_SIZE(bytes, aligned_name, prefix)                                                                     \
    EMU_CALLBACK void __tsan_##prefix##read##bytes(void* p) { announce<aligned_name>(p, bytes, Access::read, EMU_SITE); }    \
    EMU_CALLBACK void __tsan_##prefix##write##bytes(void* p) { announce<aligned_name>(p, bytes, Access::write, EMU_SITE); }

using namespace emu;

template <bool aligned> static inline void announce(const void* p, size_t bytes, Access kind, Site site) {
    if (aligned && reinterpret_cast<uintptr_t>(p) % bytes) misaligned_access(p, bytes, std::to_string(bytes).append(" bytes").c_str(), site);
    instrumented_access(p, bytes, kind, site);
}

EMU_SIZE(1, true, ) EMU_SIZE(2, true, ) EMU_SIZE(4, true, ) EMU_SIZE(8, true, ) EMU_SIZE(16, true, )
EMU_SIZE(1, true, volatile_) EMU_SIZE(2, true, volatile_) EMU_SIZE(4, true, volatile_) EMU_SIZE(8, true, volatile_) EMU_SIZE(16, true, volatile_)
EMU_SIZE(2, false, unaligned_) EMU_SIZE(4, false, unaligned_) EMU_SIZE(8, false, unaligned_) EMU_SIZE(16, false, unaligned_)

EMU_CALLBACK void __tsan_read_range(void* p, long bytes) { instrumented_access(p, size_t(bytes), Access::read, EMU_SITE); }
EMU_CALLBACK void __tsan_write_range(void* p, long bytes) { instrumented_access(p, size_t(bytes), Access::write, EMU_SITE); }
EMU_CALLBACK void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    instrumented_access(from, bytes, Access::read, EMU_SITE);
    instrumented_access(to, bytes, Access::write, EMU_SITE);
    return __builtin_memcpy(to, from, bytes);
}
EMU_CALLBACK void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    instrumented_access(from, bytes, Access::read, EMU_SITE);
    instrumented_access(to, bytes, Access::write, EMU_SITE);
    return __builtin_memmove(to, from, bytes);
}
EMU_CALLBACK void* __tsan_memset(void* to, int value, size_t bytes) {
    instrumented_access(to, bytes, Access::write, EMU_SITE);
    return __builtin_memset(to, value, bytes);
}
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
