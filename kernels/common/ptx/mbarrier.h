// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// mbarriers: 8 bytes of shared memory that count arrivals of threads and bytes of copies. sm_90.
//
// A phase completes when the pending arrivals are 0 and the pending bytes are 0; the next phase then starts with the
// full count. A waiter names the parity of the phase it waits for: 0 for the first, 1 for the second, 0, 1, ...
#pragma once
#include "common/ptx/basic.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error "common/ptx/mbarrier.h needs sm_90 or later"
#endif

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/mbarrier.h"
#else
namespace ptx {

// A phase takes `arrivals` arrivals (1 to 2^20 - 1). One thread calls it, once; 8-byte aligned.
__device__ __forceinline__ void mbar_init(uint64_t* s_barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(s_barrier)), "r"(arrivals) : "memory");
}

// Make this thread's mbar_init visible to the cluster and to TMA. A __syncthreads or cluster barrier still follows.
__device__ __forceinline__ void mbar_fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// End the barrier's life, so that its bytes can be used for something else.
__device__ __forceinline__ void mbar_inval(uint64_t* s_barrier) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(smem_u32(s_barrier)) : "memory");
}

// One arrival, or `arrivals` at once. Releases: this thread's earlier writes are visible to whoever waits.
__device__ __forceinline__ void mbar_arrive(uint64_t* s_barrier, int arrivals = 1) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(s_barrier)), "r"(arrivals) : "memory");
}

// The phase also waits for `bytes` more bytes of copies; then one arrival.
__device__ __forceinline__ void mbar_arrive_expect_tx(uint64_t* s_barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(s_barrier)), "r"(bytes)
                 : "memory");
}

// The phase also waits for `bytes` more bytes of copies; no arrival.
__device__ __forceinline__ void mbar_expect_tx(uint64_t* s_barrier, int bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(s_barrier)), "r"(bytes)
                 : "memory");
}

// One arrival at the barrier that lies at the same place in block `rank` of the cluster.
__device__ __forceinline__ void mbar_arrive_cluster(uint64_t* s_barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}\n" ::"r"(smem_u32(s_barrier)), "r"(rank)
        : "memory");
}

// The same from a warp that has only read: nothing it wrote becomes visible, and it need not wait until it is.
__device__ __forceinline__ void mbar_arrive_cluster_relaxed(uint64_t* s_barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [remote];\n"
        "}\n" ::"r"(smem_u32(s_barrier)), "r"(rank)
        : "memory");
}

// Has the phase of this parity completed? May sleep for a short time before it answers no.
__device__ __forceinline__ bool mbar_try_wait(uint64_t* s_barrier, int parity) {
    uint32_t complete;
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}\n"
        : "=r"(complete)
        : "r"(smem_u32(s_barrier)), "r"(parity)
        : "memory");
    return complete;
}

// Wait until the phase of this parity has completed; what was written before its arrivals, and what its copies
// brought, is then visible. A barrier that has completed no phase lets parity 1 pass: slots start out empty.
__device__ __forceinline__ void mbar_wait(uint64_t* s_barrier, int parity) {
    while (!mbar_try_wait(s_barrier, parity)) {}
}

// The same across the cluster: also acquires what other blocks released with mbar_arrive_cluster.
__device__ __forceinline__ void mbar_wait_cluster(uint64_t* s_barrier, int parity) {
    uint32_t complete;
    do {
        asm volatile(
            "{\n"
            ".reg .pred complete;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2;\n"
            "selp.u32 %0, 1, 0, complete;\n"
            "}\n"
            : "=r"(complete)
            : "r"(smem_u32(s_barrier)), "r"(parity)
            : "memory");
    } while (!complete);
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
