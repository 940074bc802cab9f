// What a compiled kernel asks of the runtime. Bodies: ../*.cpp, compiled once and never instrumented.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "vector_types.h"

#ifdef __clang__
#define EMU_API __attribute__((visibility("default"), nomerge))     // two calls on two lines stay two calls
#else
#define EMU_API __attribute__((visibility("default")))              // see _GCC_FLAGS of flashmoe_nb/emulator.py
#endif

namespace emu {

// What a CUDA thread knows about itself.
struct Thread {
    uint3 thread_idx, block_idx;
    dim3 block_dim, grid_dim;
    unsigned index;        // linear index in the block
    unsigned warp, lane;   // index / 32, index % 32
};

// The calling thread. It never changes within a function, so compilers may call this once and keep the pointer.
EMU_API const Thread* thread() __attribute__((const));

// Barriers. `threads` counts those that arrive and those that wait.
enum class Reduce { count, all, any };
EMU_API void syncthreads();
EMU_API int syncthreads_reduce(int predicate, Reduce reduce);
EMU_API void bar_sync(int barrier, int threads);
EMU_API void bar_arrive(int barrier, int threads);

// Warp collectives. Values travel as 64 bits.
enum class Shuffle { index, up, down, exclusive_or };
enum class Vote { ballot, all, any, match_any, match_all, max, min, add };     // the last three reduce unsigned values
EMU_API void syncwarp(unsigned mask);
EMU_API void threadfence();
EMU_API uint64_t shuffle(unsigned mask, uint64_t value, int operand, int width, Shuffle kind);
EMU_API unsigned vote(unsigned mask, uint64_t value, Vote kind);
EMU_API unsigned activemask();

// Atomic read-modify-write; returns the old value. T: int, unsigned, (unsigned) long long, float, double; for
// compare-and-swap unsigned short too.
enum class Atomic { add, max, min, exchange, bit_and, bit_or, bit_xor, increment, decrement };
template <class T> EMU_API T atomic(Atomic operation, T* address, T operand);
template <class T> EMU_API T atomic_compare_and_swap(T* address, T expected, T desired);

// Lets the other threads of the block run; a spin loop needs one.
EMU_API void yield();
EMU_API long long clock();

EMU_API int print(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] EMU_API void assertion_failed(const char* expression);
[[noreturn]] EMU_API void trap();

}  // namespace emu
