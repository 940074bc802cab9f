// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// cp.async: a thread's own copy from global to shared memory that does not wait for the data. sm_80.
//
// Copies issued between two commits form a group. Groups complete in order; a wait makes the data visible to the
// thread that issued the copies, so a barrier follows before other threads read it.
#pragma once
#include "common/ptx/basic.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "common/ptx/cp_async.h needs sm_80 or later"
#endif

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/cp_async.h"
#else
namespace ptx {

// 16 bytes, past L1. Where `valid` is false the destination is zero-filled and the source is not read.
// Both addresses are 16-byte aligned.
__device__ __forceinline__ void cp_async_16(void* s_destination, const void* g_source, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(s_destination)), "l"(g_source),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// 8 bytes, through L1; both addresses 8-byte aligned.
__device__ __forceinline__ void cp_async_8(void* s_destination, const void* g_source, bool valid = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(smem_u32(s_destination)), "l"(g_source),
                 "r"(valid ? 8 : 0)
                 : "memory");
}

// 4 bytes, through L1; both addresses 4-byte aligned.
__device__ __forceinline__ void cp_async_4(void* s_destination, const void* g_source, bool valid = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_u32(s_destination)), "l"(g_source),
                 "r"(valid ? 4 : 0)
                 : "memory");
}

// Close the group of this thread's copies since the last commit; it may be empty.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most PENDING of this thread's newest groups are still under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    static_assert(PENDING >= 0, "a number of groups");
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Arrive at an mbarrier when this thread's copies so far have landed; counts as one of the barrier's arrivals.
__device__ __forceinline__ void cp_async_mbar_arrive(uint64_t* s_barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_u32(s_barrier)) : "memory");
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
