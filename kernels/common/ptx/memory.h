// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// Global memory, 16 bytes at a time or with an order that other blocks can rely on. Any architecture.
#pragma once
#include "common/ptx/basic.h"

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/memory.h"
#else
namespace ptx {

// 16 bytes that nobody writes while the kernel runs, read once: kept out of L1. `g_pointer` is 16-byte aligned.
__device__ __forceinline__ uint4 ld_nc_v4(const void* g_pointer) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(g_pointer));
    return value;
}

// 16 bytes written and not read again soon. `g_pointer` is 16-byte aligned.
__device__ __forceinline__ void st_v4(void* g_pointer, uint4 value) {
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(g_pointer), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

// What the writer stored before its release is visible to what this thread reads after this load.
__device__ __forceinline__ int ld_acquire(const int* g_flag) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(g_flag) : "memory");
    return value;
}

// Publishes this thread's earlier writes to whoever acquires `g_flag`.
__device__ __forceinline__ void st_release(int* g_flag, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(g_flag), "r"(value) : "memory");
}

// *g_counter += value, publishing like st_release. Returns nothing, so the thread does not wait for memory.
__device__ __forceinline__ void red_release(int* g_counter, int value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(g_counter), "r"(value) : "memory");
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
