// A right kernel, and one mistake at a time: the emulator must refuse each, and name its line.
#include <cuda_bf16.h>
#include "common/ptx/cluster.h"
#include "common/ptx/cp_async.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/mbarrier.h"
#include "common/ptx/register.h"
#include "common/ptx/tma.h"
#include "common/ptx/wgmma.h"

extern __shared__ __align__(1024) unsigned char smem_raw[];

enum Mistake {
    NONE, NO_FENCE_INIT, NO_BARRIER_WAIT, ARRIVE_TWICE, EXPECT_LESS, EXPECT_MORE, UNALIGNED_TILE, WRONG_RANK, NO_INIT,
    UNALIGNED_COLUMN,
    INIT_TWICE, BARRIER_OVERWRITTEN, BAD_PARITY, NO_WGMMA_FENCE, TOUCHED_AFTER_FENCE, FRAGMENTS_TOUCHED,
    NO_WGMMA_COMMIT, NO_WGMMA_WAIT, WAIT_LEAVES_GROUP, DESCRIPTORS_DIFFER, ACCUMULATORS_READ, ACCUMULATORS_WRITTEN,
    FRAGMENTS_WRITTEN, TILE_WRITTEN, TILE_REFILLED, MISSING_WARP, NOT_A_GROUP_OF_EIGHT, NO_PROXY_FENCE, NO_TMA_COMMIT,
    NO_TMA_WAIT, STORED_TILE_WRITTEN, SECOND_WGMMA_WITHOUT_FENCE, FRAGMENTS_NOT_NAMED,
};

struct SharedStorage {
    __nv_bfloat16 a[64 * 64];
    __nv_bfloat16 b[64 * 64];
    float d[64 * 32];
    uint64_t full;
};

// d[64][32] = a[64][64] b[32][64]^T for one block of 128 threads.
__global__ void __launch_bounds__(128, 1)
    product_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                   const __grid_constant__ CUtensorMap d_map, int mistake) {
    SharedStorage& s = *reinterpret_cast<SharedStorage*>(smem_raw);
    if (threadIdx.x == 0) {
        if (mistake != NO_INIT) ptx::mbar_init(&s.full, 1);
        if (mistake == INIT_TWICE) ptx::mbar_init(&s.full, 1);
        if (mistake != NO_FENCE_INIT) ptx::mbar_fence_init();
        if (mistake == BARRIER_OVERWRITTEN) s.full = 1;
        const int bytes = sizeof(s.a) + sizeof(s.b) / 2;
        const int less = sizeof(s.a), more = bytes + 64;
        ptx::mbar_arrive_expect_tx(&s.full, mistake == EXPECT_LESS ? less : mistake == EXPECT_MORE ? more : bytes);
        if (mistake == ARRIVE_TWICE) ptx::mbar_arrive(&s.full);
        ptx::tma_load(mistake == UNALIGNED_TILE ? s.a + 64 : s.a, &a_map, &s.full, {0, 0});
        if (mistake == WRONG_RANK) ptx::tma_load(s.b, &b_map, &s.full, {0, 0, 0});
        ptx::tma_load(s.b, &b_map, &s.full, {mistake == UNALIGNED_COLUMN ? 4 : 0, 0});
    }
    __syncthreads();
    if (mistake != NO_BARRIER_WAIT) ptx::mbar_wait(&s.full, mistake == BAD_PARITY ? 2 : 0);

    float sum[16];
    uint32_t r[4] = {0, 0, 0, 0};
    for (int i = 0; i < 16; ++i) sum[i] = 0;
    if (mistake == FRAGMENTS_NOT_NAMED) ptx::wgmma_fence(sum);
    else if (mistake != NO_WGMMA_FENCE) ptx::wgmma_fence(sum, r);
    if (mistake == TOUCHED_AFTER_FENCE) sum[0] = 1;
    if (mistake == MISSING_WARP && threadIdx.x >= 96) return;
    ptx::MatrixDescriptor a = ptx::k_major(s.a), b = ptx::k_major(s.b);
    if (mistake == DESCRIPTORS_DIFFER && threadIdx.x == 77) a = a + 32;
    if (mistake == NOT_A_GROUP_OF_EIGHT) a = a + 128;
    for (int k = 0; k < 4; ++k) ptx::wgmma_ss<32, __nv_bfloat16>(sum, a + 32 * k, b + 32 * k);
    if (mistake == FRAGMENTS_NOT_NAMED) ptx::wgmma_rs<32, __nv_bfloat16>(sum, r, b, mistake);
    if (mistake == FRAGMENTS_TOUCHED) {
        r[0] = 0x3f803f80;
        ptx::wgmma_rs<32, __nv_bfloat16>(sum, r, b, true);
    }
    if (mistake == FRAGMENTS_WRITTEN) {
        ptx::wgmma_rs<32, __nv_bfloat16>(sum, r, b);
        r[0] = 0x3f803f80;
        ptx::wgmma_rs<32, __nv_bfloat16>(sum, r, b);
    }
    if (mistake != NO_WGMMA_COMMIT) ptx::wgmma_commit();
    if (mistake == ACCUMULATORS_READ && sum[0] > 1) ptx::fence_proxy_async();
    if (mistake == ACCUMULATORS_WRITTEN) sum[0] = 1;
    if (mistake == TILE_WRITTEN) s.a[threadIdx.x] = 1.0f;
    if (mistake == TILE_REFILLED && threadIdx.x == 0) ptx::tma_load(s.a, &a_map, &s.full, {0, 0});
    if (mistake == WAIT_LEAVES_GROUP) ptx::wgmma_wait<1>(sum);
    else if (mistake != NO_WGMMA_WAIT) ptx::wgmma_wait<0>(sum);
    if (mistake == SECOND_WGMMA_WITHOUT_FENCE) {
        sum[0] += 1;
        ptx::wgmma_ss<32, __nv_bfloat16>(sum, a, b);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>(sum);
    }

    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 16; ++i) s.d[(row + i / 2 % 2 * 8) * 32 + i / 4 * 8 + column + i % 2] = sum[i];
    if (mistake != NO_PROXY_FENCE) ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::tma_store(&d_map, {0, 0}, s.d);
        if (mistake != NO_TMA_COMMIT) ptx::tma_commit();
        if (mistake == STORED_TILE_WRITTEN) s.d[5] = -1;
        if (mistake != NO_TMA_WAIT) ptx::tma_wait_read<0>();
    }
}

// A tile written by ordinary stores, and read by the tensor cores without a proxy fence between.
__global__ void __launch_bounds__(128, 1) generic_tile_kernel(const int* in, float* out, int fence) {
    for (int i = threadIdx.x; i < 2048; i += 128) reinterpret_cast<int*>(smem_raw)[i] = in[i];
    if (fence) ptx::fence_proxy_async();
    __syncthreads();
    float sum[4] = {0, 0, 0, 0};
    ptx::wgmma_fence(sum);
    ptx::wgmma_ss<8, __nv_bfloat16>(sum, ptx::k_major(smem_raw), ptx::k_major(smem_raw));
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sum);
    out[threadIdx.x] = sum[0];
}

// mistake 1: no wait for the copy; 2: a row at an odd address; 3: half of the warp; 4: a copy to an odd address.
__global__ void rows_kernel(const int* in, unsigned* out, int mistake) {
    __shared__ __align__(16) unsigned char tile[32 * 16 + 16];
    ptx::cp_async_16(tile + threadIdx.x * 16 + (mistake == 4 ? 4 : 0), in + 4 * threadIdx.x);
    ptx::cp_async_commit();
    if (mistake != 1) ptx::cp_async_wait<0>();
    __syncwarp();
    uint32_t r[4];
    if (mistake == 3 && threadIdx.x >= 16) return;
    ptx::ldmatrix_x4(r, tile + threadIdx.x * 16 + (mistake == 2 ? 8 : 0));
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = r[i];
}

// mistake 1: the producer gives nothing back; 2: it asks for more than it has; 3: its threads differ.
__global__ void __launch_bounds__(384, 1) registers_kernel(int* out, int mistake) {
    if (threadIdx.x < 128) {
        if (mistake == 0) ptx::reg_dealloc<24>();
        if (mistake == 2) ptx::reg_dealloc<200>();
        if (mistake == 3) {
            if (threadIdx.x < 64) ptx::reg_dealloc<24>();
            else ptx::reg_dealloc<32>();
        }
    } else {
        ptx::reg_alloc<240>();
    }
    out[threadIdx.x] = threadIdx.x;
}

// mistake 1: a second phase ends before a waiting thread has seen the first; 2: an mbarrier ended while awaited;
// 3: nobody arrives.
__global__ void phases_kernel(int* out, int mistake) {
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) ptx::mbar_init(&barrier, 1);
    __syncthreads();
    if (threadIdx.x < 32) {
        ptx::mbar_wait(&barrier, 0);
        out[threadIdx.x] = 1;
    } else if (threadIdx.x == 32) {
        if (mistake == 2) ptx::mbar_inval(&barrier);
        if (mistake != 3) ptx::mbar_arrive(&barrier);
        if (mistake == 1) ptx::mbar_arrive(&barrier);
    }
}

// mistake 1: no cluster barrier between mbar_init and the neighbour's arrival; 2: no mbar_fence_init; 3: block 0 ends
// without waiting for the other; 4: cluster_wait without cluster_arrive; 5: a block that does not exist.
__global__ void __cluster_dims__(2, 1, 1) neighbours_kernel(int* out, int mistake) {
    __shared__ uint64_t barrier;
    const unsigned rank = ptx::cluster_rank();
    if (threadIdx.x == 0) {
        ptx::mbar_init(&barrier, 1);
        if (mistake != 2) ptx::mbar_fence_init();
    }
    if (mistake != 1) {
        if (mistake != 4) ptx::cluster_arrive();
        ptx::cluster_wait();
    }
    if (mistake == 3 && rank == 0) return;
    if (mistake == 3)
        for (int i = 0; i < 8; ++i) ptx::spin_yield();
    if (threadIdx.x == 0) ptx::mbar_arrive_cluster(&barrier, mistake == 5 ? 2 : rank ^ 1);
    ptx::mbar_wait_cluster(&barrier, 0);
    out[blockIdx.x * 32 + threadIdx.x] = int(rank);
    ptx::cluster_arrive();
    ptx::cluster_wait();
}
