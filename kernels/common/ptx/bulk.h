// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Bulk copies: contiguous bytes by the copy engine, without a tensor map. sm_90.
//
// Both addresses and the size are multiples of 16 bytes. Loads complete on an mbarrier, stores in groups, by tma.h's
// tma_commit and tma_wait.
#pragma once
#include "common/ptx/basic.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error "common/ptx/bulk.h needs sm_90 or later"
#endif

struct __half;
struct __nv_bfloat16;

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/bulk.h"
#else
namespace ptx {

// Start copying `bytes` bytes to shared memory; the barrier receives them as they land.
__device__ __forceinline__ void bulk_load(void* s_destination, const void* g_source, int bytes, uint64_t* s_barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     smem_u32(s_destination)),
                 "l"(g_source), "r"(bytes), "r"(smem_u32(s_barrier))
                 : "memory");
}

// Start copying `bytes` bytes to global memory.
__device__ __forceinline__ void bulk_store(void* g_destination, const void* s_source, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(g_destination),
                 "r"(smem_u32(s_source)), "r"(bytes)
                 : "memory");
}

// Start adding shared memory to global memory, element by element; bf16 and fp16 round each sum.
__device__ __forceinline__ void bulk_reduce_add(float* g_destination, const float* s_source, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(g_destination),
                 "r"(smem_u32(s_source)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bulk_reduce_add(__nv_bfloat16* g_destination, const __nv_bfloat16* s_source,
                                                int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%0], [%1], %2;" ::"l"(
                     g_destination),
                 "r"(smem_u32(s_source)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bulk_reduce_add(__half* g_destination, const __half* s_source, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16 [%0], [%1], %2;" ::"l"(
                     g_destination),
                 "r"(smem_u32(s_source)), "r"(bytes)
                 : "memory");
}

// Fetch `bytes` bytes into L2 only.
__device__ __forceinline__ void bulk_prefetch(const void* g_source, int bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(g_source), "r"(bytes) : "memory");
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
