// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// What every other header here uses: shared-memory addresses, one thread of a warp, waiting politely.
// Any architecture; what needs more says so.
#pragma once
#ifdef __CUDACC_RTC__  // NVRTC has no <cstdint>
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/basic.h"
#else
namespace ptx {

// The 32-bit address that shared-memory instructions take.
__device__ __forceinline__ uint32_t smem_u32(const void* s_pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(s_pointer));
}

// Give way to other warps for about `nanoseconds` while polling memory.
__device__ __forceinline__ void spin_yield(unsigned nanoseconds = 32) {
    asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// True in exactly one lane. All 32 lanes must call it together.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{\n"
        ".reg .pred elected;\n"
        "elect.sync _|elected, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, elected;\n"
        "}\n"
        : "=r"(elected));
    return elected;
}

// Later accesses to shared memory by TMA and WGMMA (the async proxy) see this thread's earlier loads and stores.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The same for global memory.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// Wait until the kernels this one depends on have finished and their writes are visible.
__device__ __forceinline__ void griddep_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Let the dependent kernel start as soon as every block has said so or ended.
__device__ __forceinline__ void griddep_launch_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

#endif  // sm_90
}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
