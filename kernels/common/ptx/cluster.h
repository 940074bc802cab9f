// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Clusters: neighbouring blocks that run at the same time and reach each other's shared memory. sm_90.
#pragma once
#include "common/ptx/basic.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error "common/ptx/cluster.h needs sm_90 or later"
#endif

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/cluster.h"
#else
namespace ptx {

// This block's rank in its cluster, 0 ... cluster_size() - 1.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ uint32_t cluster_size() {
    uint32_t size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

// Count this thread towards the cluster's barrier; its earlier writes are visible to whoever waits.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Wait until every thread of every block of the cluster has arrived.
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A pointer to what lies at the same place in the shared memory of block `rank`: load and store through it as usual,
// while that block runs.
template <class T>
__device__ __forceinline__ T* cluster_map(T* s_pointer, uint32_t rank) {
    T* mapped;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(s_pointer), "r"(rank));
    return mapped;
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
