// Kernels for tests/test_reports.py: what a report counts, and mistakes that only it finds.
#include <cuda_bf16.h>
#include "common/ptx/barrier.h"
#include "common/ptx/basic.h"
#include "common/ptx/bulk.h"
#include "common/ptx/cluster.h"
#include "common/ptx/cp_async.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/mbarrier.h"
#include "common/ptx/memory.h"
#include "common/ptx/register.h"
#include "common/ptx/tma.h"
#include "common/ptx/wgmma.h"

extern __shared__ __align__(1024) unsigned char smem_raw[];

// ---- counts ----

template <int BYTES> struct Word;
template <> struct Word<4> { using type = float; };
template <> struct Word<8> { using type = float2; };
template <> struct Word<16> { using type = float4; };

// A warp stores words and loads them again, `stride` words apart.
template <int BYTES>
__global__ void stride_kernel(float* g_out, int stride) {
    using W = typename Word<BYTES>::type;
    W* s_words = reinterpret_cast<W*>(smem_raw);
    const W word = reinterpret_cast<const W*>(g_out)[threadIdx.x];
    s_words[threadIdx.x * stride] = word;                                  // here: store
    __syncthreads();
    reinterpret_cast<W*>(g_out)[threadIdx.x] = s_words[threadIdx.x * stride];  // here: load
}

// Reads `g_in[first + stride * i]` by a warp.
__global__ void sectors_kernel(const float* g_in, float* g_out, int first, int stride) {
    const float x = g_in[first + stride * int(threadIdx.x)];  // here: gather
    if (threadIdx.x < 8) g_out[threadIdx.x] = x;              // here: few
}

__global__ void rows_kernel(const float* g_in, float* g_out, int pitch) {
    for (int i = threadIdx.x; i < 1024; i += 32) reinterpret_cast<float*>(smem_raw)[i] = g_in[i];
    __syncwarp();
    uint32_t r[4];
    ptx::ldmatrix_x4(r, smem_raw + pitch * int(threadIdx.x % 8) + 16 * int(threadIdx.x / 8));  // here: ldmatrix
    g_out[threadIdx.x] = __uint_as_float(r[0] ^ r[1] ^ r[2] ^ r[3]);
}

// ---- ordinary memory ----

enum Mistake { RIGHT, NO_SYNCTHREADS, NO_SYNCWARP, ONLY_SHUFFLE, ONLY_VOTE, TOO_EARLY };

template <int MISTAKE>
__global__ void exchange_kernel(const float* g_in, float* g_out) {
    __shared__ float s_values[128];
    const int i = threadIdx.x;
    for (int round = 0; round < 3; ++round) {
        s_values[i] = g_in[i] + round;  // here: write
        if (MISTAKE == RIGHT || MISTAKE == NO_SYNCWARP) __syncthreads();
        if (MISTAKE == ONLY_SHUFFLE) __shfl_sync(~0u, i, 0);
        g_out[i] = s_values[i ^ (MISTAKE == NO_SYNCWARP || MISTAKE == ONLY_SHUFFLE ? 1 : 64)];  // here: read
        if (MISTAKE == RIGHT || MISTAKE == NO_SYNCTHREADS) __syncthreads();
        if (MISTAKE == ONLY_SHUFFLE) __shfl_sync(~0u, i, 0);
    }
}

// Neighbouring lanes write halves, bytes and vectors of one word: no two touch the same byte.
__global__ void parts_kernel(float* g_out) {
    __shared__ __nv_bfloat16 s_halves[64];
    __shared__ unsigned char s_bytes[64];
    __shared__ uint4 s_vectors[64];
    const int i = threadIdx.x;
    s_halves[i] = __float2bfloat16(float(i));
    s_bytes[i] = (unsigned char)(i);
    s_vectors[i] = make_uint4(i, i, i, i);
    __syncthreads();
    const uint4 v = s_vectors[63 - i];
    g_out[i] = __bfloat162float(s_halves[63 - i]) + s_bytes[63 - i] + v.w;
}

// Every lane stores the same value, or its own, to the same place.
__global__ void same_place_kernel(float* g_out, int own) {
    __shared__ int s_flag;
    s_flag = own ? int(threadIdx.x) : 7;  // here: same
    __syncthreads();
    g_out[threadIdx.x] = s_flag;
}

// A vote on what lanes have read is no barrier for whoever writes there next.
template <int MISTAKE>
__global__ void vote_kernel(const float* g_in, float* g_out) {
    __shared__ float s_values[32];
    const int i = threadIdx.x;
    s_values[i] = g_in[i];
    __syncwarp();
    const int positive = __popc(__ballot_sync(~0u, s_values[i ^ 1] > 0.f));  // here: look
    if (MISTAKE == RIGHT) __syncwarp();
    s_values[i] = positive;  // here: replace
    __syncwarp();
    g_out[i] = s_values[i ^ 1];
}

// ---- global memory ----

// The halves of a block, or two blocks, read each other's values.
template <int MISTAKE>
__global__ void halves_kernel(float* g_out, int distance) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    g_out[i] = float(i);  // here: give
    if (MISTAKE == RIGHT) __syncthreads();
    const float other = g_out[i ^ distance];  // here: take
    __syncthreads();
    g_out[i] = other;
}

__global__ void same_word_kernel(float* g_out, int own) {
    *g_out = own ? float(threadIdx.x) : 7.f;  // here: same_word
}

enum Last { LAST_RIGHT, ALL_RELEASE, NO_RELEASE, NO_ACQUIRE, ONE_THREAD_KNOWS };

// Each block leaves its numbers; whoever comes last adds up all of them.
template <int MISTAKE>
__global__ void last_block_kernel(float* g_parts, unsigned* g_done, float* g_sum) {
    __shared__ bool s_last;
    g_parts[blockIdx.x * blockDim.x + threadIdx.x] = 1.f;  // here: part
    if (MISTAKE == ALL_RELEASE) __threadfence();
    if (MISTAKE != ONE_THREAD_KNOWS) __syncthreads();
    if (threadIdx.x == 0) {
        if (MISTAKE != NO_RELEASE && MISTAKE != ALL_RELEASE) __threadfence();
        s_last = atomicInc(g_done, gridDim.x - 1) == gridDim.x - 1;
        if (MISTAKE != NO_ACQUIRE) __threadfence();
    }
    __syncthreads();
    float sum = 0.f;
    for (int i = threadIdx.x; s_last && i < gridDim.x * blockDim.x; i += blockDim.x) sum += g_parts[i];  // here: sum
    if (s_last) atomicAdd(g_sum, sum);
    if (MISTAKE == LAST_RIGHT && s_last && threadIdx.x == 0) *g_done = 0;  // behind this block's own count, the last one
}

enum Flag { FLAG_RIGHT, FLAG_COUNTED, FLAG_PLAIN, FLAG_EARLY };

// Block 0 makes a tile, block 1 waits for the flag and takes it.
template <int MISTAKE>
__global__ void flag_kernel(float* g_tile, int* g_flag, float* g_out) {
    if (blockIdx.x == 0) {
        if (MISTAKE == FLAG_EARLY && threadIdx.x == 0) ptx::st_release(g_flag, 1);
        g_tile[threadIdx.x] = float(threadIdx.x);  // here: make
        __syncthreads();
        if (threadIdx.x > 0) return;
        if (MISTAKE == FLAG_RIGHT) ptx::st_release(g_flag, 1);
        if (MISTAKE == FLAG_COUNTED) ptx::red_release(g_flag, 1);
        if (MISTAKE == FLAG_PLAIN) atomicExch(g_flag, 1);
    } else {
        while (threadIdx.x == 0 && ptx::ld_acquire(g_flag) == 0) {}
        __syncthreads();
        g_out[threadIdx.x] = g_tile[threadIdx.x ^ 1];  // here: take_tile
    }
}

// Two warps pass a tile through named barriers.
template <int MISTAKE>
__global__ void named_kernel(const float* g_in, float* g_out) {
    __shared__ float s_tile[32];
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        if (threadIdx.x < 32) {
            if (i > 0) ptx::bar_sync(2, 64);
            s_tile[lane] = g_in[32 * i + lane];  // here: fill
            ptx::bar_arrive(1, 64);
        } else {
            ptx::bar_sync(1, 64);
            if (i < 3 && MISTAKE == TOO_EARLY) ptx::bar_arrive(2, 64);
            g_out[32 * i + lane] = s_tile[lane];  // here: drain
            if (i < 3 && MISTAKE != TOO_EARLY) ptx::bar_arrive(2, 64);
        }
    }
}

// ---- asynchronous copies ----

enum CopyMistake { COPY_RIGHT, NO_WAIT, WAIT_TOO_LATE, NO_BARRIER };

template <int MISTAKE>
__global__ void cp_async_kernel(const float* g_in, float* g_out) {
    __shared__ __align__(16) float s_tile[128];
    const int i = threadIdx.x;
    ptx::cp_async_16(&s_tile[4 * i], &g_in[4 * i]);  // here: copy
    ptx::cp_async_commit();
    if (MISTAKE != NO_WAIT && MISTAKE != WAIT_TOO_LATE) ptx::cp_async_wait<0>();
    if (MISTAKE != NO_BARRIER) __syncthreads();
    g_out[i] = s_tile[MISTAKE == NO_BARRIER ? (4 * i + 4) % 128 : 4 * i];  // here: use
    if (MISTAKE == WAIT_TOO_LATE) ptx::cp_async_wait<0>();
}

// Warp 0 brings tiles through a ring of two slots, warp 1 doubles them.
enum RingMistake { RING_RIGHT, EARLY_ARRIVE, NO_FULL_WAIT, ONE_LANE_ARRIVES };

template <int MISTAKE>
__global__ void ring_kernel(const float* g_in, float* g_out, int rounds) {
    __shared__ __align__(128) float s_slot[2][32];
    __shared__ uint64_t full[2], empty[2];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) {
            ptx::mbar_init(&full[i], 1);
            ptx::mbar_init(&empty[i], MISTAKE == ONE_LANE_ARRIVES ? 1 : 32);
        }
        ptx::mbar_fence_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 0; i < rounds; ++i) {
            if (i >= 2) ptx::mbar_wait(&empty[i % 2], (i / 2 - 1) % 2);
            ptx::mbar_arrive_expect_tx(&full[i % 2], 128);
            ptx::bulk_load(s_slot[i % 2], g_in + 32 * i, 128, &full[i % 2]);  // here: fetch
        }
    } else if (threadIdx.x >= 32) {
        for (int i = 0; i < rounds; ++i) {
            if (MISTAKE != NO_FULL_WAIT) ptx::mbar_wait(&full[i % 2], i / 2 % 2);
            if (MISTAKE == EARLY_ARRIVE) ptx::mbar_arrive(&empty[i % 2]);
            g_out[32 * i + lane] = 2.0f * s_slot[i % 2][lane];  // here: consume
            if (MISTAKE != EARLY_ARRIVE && (MISTAKE != ONE_LANE_ARRIVES || lane == 0)) ptx::mbar_arrive(&empty[i % 2]);
        }
    }
}

// ---- tensor cores: a warpgroup multiplies a tile from TMA with itself; the tile is filled again meanwhile ----

enum ProductMistake { PRODUCT_RIGHT, REFILL_EARLY, ONE_WARP_ARRIVES, NO_PROXY_FENCE };

template <int MISTAKE>
__global__ void product_kernel(const __grid_constant__ CUtensorMap a_map, float* g_out, int rounds) {
    __shared__ uint64_t full, empty;
    if (threadIdx.x == 0) {
        ptx::mbar_init(&full, 1);
        ptx::mbar_init(&empty, MISTAKE == ONE_WARP_ARRIVES ? 32 : 128);
        ptx::mbar_fence_init();
    }
    __syncthreads();
    if (threadIdx.x == 128) {
        for (int i = 0; i < rounds; ++i) {
            if (i > 0) ptx::mbar_wait(&empty, (i - 1) % 2);
            ptx::mbar_arrive_expect_tx(&full, 8192);
            ptx::tma_load<2>(smem_raw, &a_map, &full, {0, 0});  // here: refill
        }
    } else if (threadIdx.x < 128) {
        float sum[32] = {};
        const ptx::MatrixDescriptor tile = ptx::k_major(smem_raw);
        for (int i = 0; i < rounds; ++i) {
            ptx::mbar_wait(&full, i % 2);
            ptx::wgmma_fence(sum);
            ptx::wgmma_ss<64, __nv_bfloat16>(sum, tile, tile);  // here: product
            ptx::wgmma_commit();
            if (MISTAKE == REFILL_EARLY) ptx::mbar_arrive(&empty);
            ptx::wgmma_wait<0>(sum);
            if (MISTAKE == PRODUCT_RIGHT || (MISTAKE == ONE_WARP_ARRIVES && threadIdx.x < 32)) ptx::mbar_arrive(&empty);
        }
        for (int i = 0; i < 32; ++i) g_out[128 * i + threadIdx.x] = sum[i];
    }
}

// A tile written by stores and sent by TMA. The fence is the writer's, before the barrier.
template <int MISTAKE>
__global__ void send_kernel(const float* g_in, float* g_out) {
    __shared__ __align__(128) float s_tile[64];
    s_tile[threadIdx.x] = g_in[threadIdx.x];                                               // here: stage
    if (MISTAKE != NO_PROXY_FENCE || threadIdx.x == 0) ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::bulk_store(g_out, s_tile, 256);  // here: send
        ptx::tma_commit();
        ptx::tma_wait<0>();
    }
}

// ---- clusters: each block reads its neighbour's shared memory ----

template <int MISTAKE>
__global__ void neighbours_kernel(float* g_out) {
    __shared__ float s_values[32];
    const uint32_t rank = ptx::cluster_rank();
    s_values[threadIdx.x] = float(32 * rank + threadIdx.x);  // here: own
    if (MISTAKE == RIGHT) {
        ptx::cluster_arrive();
        ptx::cluster_wait();
    } else {
        __syncthreads();
    }
    g_out[32 * rank + threadIdx.x] = ptx::cluster_map(s_values, rank ^ 1)[threadIdx.x];  // here: theirs
    ptx::cluster_arrive();
    ptx::cluster_wait();
}
