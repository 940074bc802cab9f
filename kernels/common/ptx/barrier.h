// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// Named barriers: `bar.sync` for some of a block's warps, 16 of them, in hardware. Any architecture.
#pragma once
#include "common/ptx/basic.h"

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/barrier.h"
#else
namespace ptx {

// Wait until `threads` threads have come to barrier `id`, waiting or only arriving; then their writes are visible.
// id 1-15 (0 is __syncthreads); `threads` a multiple of 32; whole warps call it.
__device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Count towards barrier `id` and go on. The other side of a producer/consumer pair calls bar_sync.
__device__ __forceinline__ void bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar_sync that also votes: true for every thread that waited if `predicate` was true for any of them.
__device__ __forceinline__ bool bar_red_or(int id, int threads, bool predicate) {
    uint32_t any;
    asm volatile(
        "{\n"
        ".reg .pred mine, any;\n"
        "setp.ne.u32 mine, %3, 0;\n"
        "bar.red.or.pred any, %1, %2, mine;\n"
        "selp.u32 %0, 1, 0, any;\n"
        "}\n"
        : "=r"(any)
        : "r"(id), "r"(threads), "r"(uint32_t(predicate))
        : "memory");
    return any;
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
