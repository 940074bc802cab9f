// What the two files around every kernel and the runtime agree on.
#pragma once
#include <stddef.h>

namespace emu {
#ifdef __aarch64__
constexpr size_t page_bytes = 64 << 10;
#else
constexpr size_t page_bytes = 4 << 10;
#endif
constexpr size_t dynamic_capacity = 256 << 10;    // more than any chip has; what a launch did not ask for is protected
}  // namespace emu

// A thread-local array of another file that is known to need no initialisation at run time.
#ifdef __clang__
#define EMU_EXTERN_STORAGE extern __attribute__((require_constant_initialization, visibility("hidden"))) thread_local
#define EMU_IN_ORDER                              // clang keeps the order of definitions
#else
#define EMU_EXTERN_STORAGE extern __constinit __attribute__((visibility("hidden"))) thread_local
#define EMU_IN_ORDER __attribute__((no_reorder))
#endif

// The definition of such an array, in its place of the file.
#define EMU_STORAGE(bytes_of_alignment) \
    alignas(bytes_of_alignment) EMU_IN_ORDER __attribute__((used, visibility("hidden"))) thread_local unsigned char
