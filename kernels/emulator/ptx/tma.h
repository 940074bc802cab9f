#pragma once
#include "emulator/ptx/instructions.h"
#include "emulator/ptx/tensor_map.h"

namespace ptx {

template <int RANK>
__device__ __forceinline__ void tma_load(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                         const int (&at)[RANK]) {
    emu::ptx::tma_load(s_tile, map, s_barrier, at, RANK, 0);
}
template <int RANK>
__device__ __forceinline__ void tma_load(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                         const int (&at)[RANK], uint64_t) {
    emu::ptx::tma_load(s_tile, map, s_barrier, at, RANK, 0);
}
template <int RANK>
__device__ __forceinline__ void tma_load_multicast(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                                   const int (&at)[RANK], uint16_t blocks) {
    emu::ptx::tma_load(s_tile, map, s_barrier, at, RANK, blocks);
}
template <int RANK>
__device__ __forceinline__ void tma_load_multicast(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                                   const int (&at)[RANK], uint16_t blocks, uint64_t) {
    emu::ptx::tma_load(s_tile, map, s_barrier, at, RANK, blocks);
}
template <int RANK>
__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map, const int (&)[RANK]) {
    emu::ptx::tma_prefetch(map, RANK);
}
__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) { emu::ptx::tma_prefetch(map, 0); }

template <int RANK>
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const int (&at)[RANK], const void* s_tile) {
    emu::ptx::tma_store(map, at, RANK, s_tile, false);
}
template <int RANK>
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const int (&at)[RANK], const void* s_tile, uint64_t) {
    emu::ptx::tma_store(map, at, RANK, s_tile, false);
}
template <int RANK>
__device__ __forceinline__ void tma_reduce_add(const CUtensorMap* map, const int (&at)[RANK], const void* s_tile) {
    emu::ptx::tma_store(map, at, RANK, s_tile, true);
}

__device__ __forceinline__ void tma_commit() { emu::ptx::tma_commit(); }
template <int PENDING>
__device__ __forceinline__ void tma_wait() {
    emu::ptx::tma_wait(PENDING, false);
}
template <int PENDING>
__device__ __forceinline__ void tma_wait_read() {
    emu::ptx::tma_wait(PENDING, true);
}

__device__ __forceinline__ uint64_t l2_evict_first() { return 1; }
__device__ __forceinline__ uint64_t l2_evict_last() { return 2; }

}  // namespace ptx
