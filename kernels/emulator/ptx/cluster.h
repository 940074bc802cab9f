#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ uint32_t cluster_rank() { return emu::ptx::cluster_rank(); }
__device__ __forceinline__ uint32_t cluster_size() { return emu::ptx::cluster_size(); }
__device__ __forceinline__ void cluster_arrive() { emu::ptx::cluster_arrive(); }
__device__ __forceinline__ void cluster_wait() { emu::ptx::cluster_wait(); }

template <class T>
__device__ __forceinline__ T* cluster_map(T* s_pointer, uint32_t rank) {
    return static_cast<T*>(emu::ptx::cluster_map(s_pointer, rank));
}

}  // namespace ptx
