#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ uint32_t smem_u32(const void* s_pointer) { return emu::ptx::smem_u32(s_pointer); }
__device__ __forceinline__ void spin_yield(unsigned = 32) { emu::yield(); }
__device__ __forceinline__ bool elect_one() { return emu::ptx::elect_one(); }
__device__ __forceinline__ void fence_proxy_async() { emu::ptx::fence_proxy_async(); }
__device__ __forceinline__ void fence_proxy_async_global() {}     // one view of global memory

// Launches follow one another, but what they wrote is a dependent kernel's only after the wait.
__device__ __forceinline__ void griddep_wait() { emu::ptx::griddep_wait(); }
__device__ __forceinline__ void griddep_launch_dependents() { emu::ptx::griddep_launch_dependents(); }

}  // namespace ptx
