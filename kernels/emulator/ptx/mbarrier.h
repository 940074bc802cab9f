#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ void mbar_init(uint64_t* s_barrier, int arrivals) { emu::ptx::mbar_init(s_barrier, arrivals); }
__device__ __forceinline__ void mbar_fence_init() { emu::ptx::mbar_fence_init(); }
__device__ __forceinline__ void mbar_inval(uint64_t* s_barrier) { emu::ptx::mbar_inval(s_barrier); }
__device__ __forceinline__ void mbar_arrive(uint64_t* s_barrier, int arrivals = 1) {
    emu::ptx::mbar_arrive(s_barrier, arrivals);
}
__device__ __forceinline__ void mbar_arrive_expect_tx(uint64_t* s_barrier, int bytes) {
    emu::ptx::mbar_arrive_expect_tx(s_barrier, bytes);
}
__device__ __forceinline__ void mbar_expect_tx(uint64_t* s_barrier, int bytes) {
    emu::ptx::mbar_expect_tx(s_barrier, bytes);
}
__device__ __forceinline__ void mbar_arrive_cluster(uint64_t* s_barrier, uint32_t rank) {
    emu::ptx::mbar_arrive_cluster(s_barrier, rank);
}
__device__ __forceinline__ void mbar_arrive_cluster_relaxed(uint64_t* s_barrier, uint32_t rank) {
    emu::ptx::mbar_arrive_cluster(s_barrier, rank);
}
__device__ __forceinline__ bool mbar_try_wait(uint64_t* s_barrier, int parity) {
    return emu::ptx::mbar_try_wait(s_barrier, parity);
}
__device__ __forceinline__ void mbar_wait(uint64_t* s_barrier, int parity) { emu::ptx::mbar_wait(s_barrier, parity); }
__device__ __forceinline__ void mbar_wait_cluster(uint64_t* s_barrier, int parity) {
    emu::ptx::mbar_wait(s_barrier, parity);
}

}  // namespace ptx
