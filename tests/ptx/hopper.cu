// Kernels that show what single instructions do, on sm_90a. Tests and notebook 08 run them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/bulk.h"
#include "common/ptx/cluster.h"
#include "common/ptx/cp_async.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/mbarrier.h"
#include "common/ptx/register.h"
#include "common/ptx/tma.h"

extern __shared__ __align__(1024) unsigned char smem_raw[];

__global__ void elect_kernel(int* elected) { elected[threadIdx.x] = ptx::elect_one(); }

// Grids that depend on each other; a grid on its own passes through.
__global__ void griddep_kernel(int* out) {
    ptx::griddep_wait();
    out[threadIdx.x] = threadIdx.x;
    ptx::griddep_launch_dependents();
}

// Lane l gives `count` registers and the row 5l + 3 of 32 rows that lie 48 bytes apart; `rows` is what they become.
__global__ void stmatrix_kernel(const unsigned* registers, int* rows, int count, int transposed) {
    __shared__ __align__(16) unsigned char tile[32 * 48];
    *reinterpret_cast<uint4*>(tile + threadIdx.x * 48) = make_uint4(0, 0, 0, 0);
    __syncthreads();
    void* row = tile + (5 * threadIdx.x + 3) % 32 * 48;
    const unsigned* r = registers + threadIdx.x * 4;
    const uint32_t r1[1] = {r[0]}, r2[2] = {r[0], r[1]}, r4[4] = {r[0], r[1], r[2], r[3]};
    if (count == 1 && !transposed) ptx::stmatrix_x1(row, r1);
    if (count == 1 && transposed) ptx::stmatrix_x1_trans(row, r1);
    if (count == 2 && !transposed) ptx::stmatrix_x2(row, r2);
    if (count == 2 && transposed) ptx::stmatrix_x2_trans(row, r2);
    if (count == 4 && !transposed) ptx::stmatrix_x4(row, r4);
    if (count == 4 && transposed) ptx::stmatrix_x4_trans(row, r4);
    __syncthreads();
    reinterpret_cast<uint4*>(rows)[threadIdx.x] = *reinterpret_cast<uint4*>(tile + threadIdx.x * 48);
}

// Warp 0 fills a slot, warps 1 and 2 read it, `rounds` times over. `seen` has what each reader found; `tested` what a
// barrier for three arrivals answers to both parities before, between and after them.
__global__ void mbarrier_kernel(const int* in, int* seen, int* tested, int rounds) {
    __shared__ uint64_t full, empty, probe;
    __shared__ int slot[32];
    if (threadIdx.x == 0) {
        ptx::mbar_init(&full, 32);
        ptx::mbar_init(&empty, 2);
        ptx::mbar_init(&probe, 3);
        ptx::mbar_fence_init();
        tested[0] = ptx::mbar_try_wait(&probe, 0);
        tested[1] = ptx::mbar_try_wait(&probe, 1);
        ptx::mbar_arrive(&probe, 2);
        tested[2] = ptx::mbar_try_wait(&probe, 0);
        ptx::mbar_arrive(&probe);
        tested[3] = ptx::mbar_try_wait(&probe, 0);
        tested[4] = ptx::mbar_try_wait(&probe, 1);
        ptx::mbar_inval(&probe);
    }
    __syncthreads();
    for (int round = 0; round < rounds; ++round) {
        const int phase = round & 1;
        if (threadIdx.x < 32) {
            ptx::mbar_wait(&empty, phase ^ 1);
            slot[threadIdx.x] = in[round * 32 + threadIdx.x];
            ptx::mbar_arrive(&full);
        } else {
            ptx::mbar_wait(&full, phase);
            seen[round * 64 + threadIdx.x - 32] = slot[(threadIdx.x + 1) % 32];
            __syncwarp();
            if (threadIdx.x % 32 == 0) ptx::mbar_arrive(&empty);
        }
    }
}

// Every thread copies 16 bytes, and the barrier learns when they have landed.
__global__ void cp_async_mbar_kernel(const int* in, int* out) {
    __shared__ uint64_t landed;
    __shared__ __align__(16) int buffer[256];
    if (threadIdx.x == 0) ptx::mbar_init(&landed, 64);
    __syncthreads();
    ptx::cp_async_16(buffer + 4 * threadIdx.x, in + 4 * threadIdx.x);
    ptx::cp_async_mbar_arrive(&landed);
    ptx::mbar_wait(&landed, 0);
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = buffer[4 * (63 - threadIdx.x) + i];
}

// ---- TMA: `image` is shared memory, byte for byte ----

// hint 1 or 2: with a cache policy.
__global__ void tma_load_kernel(const __grid_constant__ CUtensorMap map, unsigned char* image, int bytes, int rank,
                                int x0, int x1, int x2, int x3, int x4, int hint) {
    __shared__ uint64_t landed;
    if (threadIdx.x == 0) {
        ptx::tma_prefetch_map(&map);
        ptx::mbar_init(&landed, 1);
        ptx::mbar_fence_init();
        if (rank == 2) ptx::tma_prefetch(&map, {x0, x1});
        ptx::mbar_arrive_expect_tx(&landed, bytes);
        if (rank == 1) ptx::tma_load(smem_raw, &map, &landed, {x0});
        if (rank == 2 && hint == 0) ptx::tma_load(smem_raw, &map, &landed, {x0, x1});
        if (rank == 2 && hint == 1) ptx::tma_load(smem_raw, &map, &landed, {x0, x1}, ptx::l2_evict_first());
        if (rank == 2 && hint == 2) ptx::tma_load(smem_raw, &map, &landed, {x0, x1}, ptx::l2_evict_last());
        if (rank == 3) ptx::tma_load(smem_raw, &map, &landed, {x0, x1, x2});
        if (rank == 4) ptx::tma_load(smem_raw, &map, &landed, {x0, x1, x2, x3});
        if (rank == 5) ptx::tma_load(smem_raw, &map, &landed, {x0, x1, x2, x3, x4});
    }
    __syncthreads();
    ptx::mbar_wait(&landed, 0);
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) image[i] = smem_raw[i];
}

enum StoreKind { STORE, STORE_WITH_HINT, ADD };

__global__ void tma_store_kernel(const __grid_constant__ CUtensorMap map, const unsigned char* image, int bytes,
                                 int rank, int x0, int x1, int x2, int x3, int x4, int kind) {
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) smem_raw[i] = image[i];
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (rank == 1) ptx::tma_store(&map, {x0}, smem_raw);
        if (rank == 2 && kind == STORE) ptx::tma_store(&map, {x0, x1}, smem_raw);
        if (rank == 2 && kind == STORE_WITH_HINT) ptx::tma_store(&map, {x0, x1}, smem_raw, ptx::l2_evict_first());
        if (rank == 2 && kind == ADD) ptx::tma_reduce_add(&map, {x0, x1}, smem_raw);
        if (rank == 3) ptx::tma_store(&map, {x0, x1, x2}, smem_raw);
        if (rank == 4) ptx::tma_store(&map, {x0, x1, x2, x3}, smem_raw);
        if (rank == 5) ptx::tma_store(&map, {x0, x1, x2, x3, x4}, smem_raw);
        ptx::tma_commit();
        ptx::tma_wait_read<0>();
        ptx::tma_wait<0>();
    }
}

// Copies `bytes` bytes through shared memory.
__global__ void bulk_kernel(const unsigned char* in, unsigned char* out, int bytes) {
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) {
        ptx::mbar_init(&barrier, 1);
        ptx::mbar_fence_init();
        ptx::bulk_prefetch(in, bytes);
        ptx::mbar_expect_tx(&barrier, bytes);
        ptx::bulk_load(smem_raw, in, bytes, &barrier);
        ptx::mbar_arrive(&barrier);
        ptx::mbar_wait(&barrier, 0);
        ptx::bulk_store(out, smem_raw, bytes);
        ptx::tma_commit();
        ptx::tma_wait<0>();
    }
}

template <class Element>
__global__ void bulk_reduce_kernel(const Element* in, Element* sums, int n) {
    Element* tile = reinterpret_cast<Element*>(smem_raw);
    for (int i = threadIdx.x; i < n; i += blockDim.x) tile[i] = in[blockIdx.x * n + i];
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::bulk_reduce_add(sums, tile, n * int(sizeof(Element)));
        ptx::tma_commit();
        ptx::tma_wait<0>();
    }
}

// ---- clusters of two ----

// Block r loads rows 16r to 16r + 15 of a tile for both blocks; each then has all 32 rows.
__global__ void __cluster_dims__(2, 1, 1)
    multicast_kernel(const __grid_constant__ CUtensorMap map, unsigned char* image, int half_bytes, int policy) {
    __shared__ uint64_t barrier;
    const int rank = int(ptx::cluster_rank());
    if (threadIdx.x == 0) {
        ptx::mbar_init(&barrier, 1);
        ptx::mbar_fence_init();
        ptx::mbar_arrive_expect_tx(&barrier, 2 * half_bytes);
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if (threadIdx.x == 0) {
        void* half = smem_raw + rank * half_bytes;
        if (policy == 0) ptx::tma_load_multicast(half, &map, &barrier, {0, 16 * rank}, 0b11);
        else ptx::tma_load_multicast(half, &map, &barrier, {0, 16 * rank}, 0b11, ptx::l2_evict_last());
    }
    ptx::mbar_wait(&barrier, 0);
    for (int i = threadIdx.x; i < 2 * half_bytes; i += blockDim.x) image[blockIdx.x * 2 * half_bytes + i] = smem_raw[i];
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

// Each block writes into its neighbour's shared memory, arrives at its neighbour's barrier, and waits at its own.
__global__ void __cluster_dims__(2, 1, 1) neighbours_kernel(const int* in, int* out, int* ranks) {
    __shared__ uint64_t filled;
    __shared__ int inbox[32];
    const unsigned rank = ptx::cluster_rank(), other = rank ^ 1;
    if (threadIdx.x == 0) {
        ptx::mbar_init(&filled, 32);
        ptx::mbar_fence_init();
        ranks[blockIdx.x] = int(rank * 10 + ptx::cluster_size());
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    ptx::cluster_map(&inbox[31 - threadIdx.x], other)[0] = in[blockIdx.x * 32 + threadIdx.x];
    ptx::mbar_arrive_cluster(&filled, other);
    ptx::mbar_wait_cluster(&filled, 0);
    out[blockIdx.x * 32 + threadIdx.x] = inbox[threadIdx.x];
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

// Three warpgroups: the first gives registers back, the others take them.
__global__ void __launch_bounds__(384, 1) registers_kernel(const int* in, int* out) {
    int value = in[threadIdx.x];
    if (threadIdx.x < 128) {
        ptx::reg_dealloc<24>();
        value += 1;
    } else {
        ptx::reg_alloc<240>();
        value += 2;
    }
    out[threadIdx.x] = value;
}

// Reads what a kernel ahead wrote; `wait` 1: after griddep_wait by one thread for all, 2: only after reading, 0: never.
__global__ void after_kernel(const int* in, const int* own, int* out, int wait) {
    int value = own[threadIdx.x];
    if (wait == 2) value += in[threadIdx.x];
    if (wait && threadIdx.x == 0) ptx::griddep_wait();
    __syncthreads();
    if (wait != 2) value += in[threadIdx.x];
    out[threadIdx.x] = value;
}
