// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// TMA: one thread asks the copy engine for a whole tile, described by a tensor map the host made. sm_90.
//
// Coordinates name the tile's first element, innermost dimension first: {column, row, ...}; the first of them is a
// multiple of 16 bytes. Elements outside the tensor read as zero and are not written. A load may start before the tensor,
// at a negative coordinate; a store may not: the chip stops at an illegal instruction. Loads complete on an mbarrier, in
// bytes; stores complete in groups, like cp.async.
// The shared tile is 128-byte aligned; a swizzled one 256, 512 or 1024 for 32, 64 or 128 bytes, because the swizzle is
// a function of the address.
#pragma once
#include "common/ptx/basic.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error "common/ptx/tma.h needs sm_90 or later"
#endif

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/tma.h"
#else

#ifndef __cuda_cuda_h__  // <cuda.h> defines the same type
struct alignas(64) CUtensorMap_st {
    uint64_t opaque[16];
};
using CUtensorMap = CUtensorMap_st;
#endif

namespace ptx {

// One instruction for tensors of one to five dimensions: `head`.2d`modifiers` {coordinates}`tail`. The coordinates are
// operands %0 to %4, of which an instruction names the first RANK; the others follow.
#define PTX_COORDINATE(i) "r"(at[i < RANK ? i : 0])
#define PTX_TILE(head, modifiers, tail, ...)                                                                           \
    static_assert(1 <= RANK && RANK <= 5, "tensors of one to five dimensions");                                        \
    if constexpr (RANK == 1) PTX_TILE_ASM(head ".1d" modifiers "{%0}" tail, __VA_ARGS__);                              \
    if constexpr (RANK == 2) PTX_TILE_ASM(head ".2d" modifiers "{%0, %1}" tail, __VA_ARGS__);                          \
    if constexpr (RANK == 3) PTX_TILE_ASM(head ".3d" modifiers "{%0, %1, %2}" tail, __VA_ARGS__);                      \
    if constexpr (RANK == 4) PTX_TILE_ASM(head ".4d" modifiers "{%0, %1, %2, %3}" tail, __VA_ARGS__);                  \
    if constexpr (RANK == 5) PTX_TILE_ASM(head ".5d" modifiers "{%0, %1, %2, %3, %4}" tail, __VA_ARGS__)
#define PTX_TILE_ASM(text, ...)                                                                                        \
    asm volatile(text ::PTX_COORDINATE(0), PTX_COORDINATE(1), PTX_COORDINATE(2), PTX_COORDINATE(3),                    \
                 PTX_COORDINATE(4), __VA_ARGS__                                                                        \
                 : "memory")

// ---- tiles, global to shared ----

// Start copying the tile at `at`. The barrier receives the tile's bytes as they land, those outside the tensor too.
template <int RANK>
__device__ __forceinline__ void tma_load(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                         const int (&at)[RANK]) {
    PTX_TILE("cp.async.bulk.tensor",
             ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%5], [%6, ", "], [%7];",
             "r"(smem_u32(s_tile)), "l"(map), "r"(smem_u32(s_barrier)));
}

// The same with a hint to the L2 cache, made by l2_evict_first or l2_evict_last.
template <int RANK>
__device__ __forceinline__ void tma_load(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                         const int (&at)[RANK], uint64_t l2_policy) {
    PTX_TILE("cp.async.bulk.tensor",
             ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%5], [%6, ", "], [%7], %8;",
             "r"(smem_u32(s_tile)), "l"(map), "r"(smem_u32(s_barrier)), "l"(l2_policy));
}

// One read of global memory for several blocks: block r of the cluster receives the tile if bit r of `blocks` is set,
// in the same place of its shared memory, and its own barrier, likewise, receives the bytes.
template <int RANK>
__device__ __forceinline__ void tma_load_multicast(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                                   const int (&at)[RANK], uint16_t blocks) {
    PTX_TILE("cp.async.bulk.tensor",
             ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%5], [%6, ", "], [%7], %8;",
             "r"(smem_u32(s_tile)), "l"(map), "r"(smem_u32(s_barrier)), "h"(blocks));
}

template <int RANK>
__device__ __forceinline__ void tma_load_multicast(void* s_tile, const CUtensorMap* map, uint64_t* s_barrier,
                                                   const int (&at)[RANK], uint16_t blocks, uint64_t l2_policy) {
    PTX_TILE("cp.async.bulk.tensor",
             ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%5], [%6, ",
             "], [%7], %8, %9;", "r"(smem_u32(s_tile)), "l"(map), "r"(smem_u32(s_barrier)), "h"(blocks),
             "l"(l2_policy));
}

// Fetch the tile into L2 only.
template <int RANK>
__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map, const int (&at)[RANK]) {
    PTX_TILE("cp.async.bulk.prefetch.tensor", ".L2.global.tile [%5, ", "];", "l"(map));
}

// Fetch the tensor map itself, so that the first load need not wait for it.
__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// ---- tiles, shared to global ----

// Start writing the tile to `at`. Every thread that wrote to the tile calls fence_proxy_async before the barrier that
// lets the storing thread go on.
template <int RANK>
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const int (&at)[RANK], const void* s_tile) {
    PTX_TILE("cp.async.bulk.tensor", ".global.shared::cta.tile.bulk_group [%5, ", "], [%6];", "l"(map),
             "r"(smem_u32(s_tile)));
}

template <int RANK>
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const int (&at)[RANK], const void* s_tile,
                                          uint64_t l2_policy) {
    PTX_TILE("cp.async.bulk.tensor", ".global.shared::cta.tile.bulk_group.L2::cache_hint [%5, ", "], [%6], %7;",
             "l"(map), "r"(smem_u32(s_tile)), "l"(l2_policy));
}

// Add the tile to what global memory holds, element by element, in the tensor map's type; in no order.
template <int RANK>
__device__ __forceinline__ void tma_reduce_add(const CUtensorMap* map, const int (&at)[RANK], const void* s_tile) {
    PTX_TILE("cp.reduce.async.bulk.tensor", ".global.shared::cta.add.tile.bulk_group [%5, ", "], [%6];", "l"(map),
             "r"(smem_u32(s_tile)));
}

#undef PTX_TILE
#undef PTX_TILE_ASM
#undef PTX_COORDINATE

// ---- the groups in which stores complete ----

// Close the group of this thread's stores since the last commit.
__device__ __forceinline__ void tma_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Wait until at most PENDING of this thread's newest groups are unfinished: the writes of the others are made.
template <int PENDING>
__device__ __forceinline__ void tma_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Wait only until their shared memory has been read, and may be written again.
template <int PENDING>
__device__ __forceinline__ void tma_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// ---- hints ----

// For what is read once: leave L2 first.
__device__ __forceinline__ uint64_t l2_evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// For what other blocks will read: leave L2 last.
__device__ __forceinline__ uint64_t l2_evict_last() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
