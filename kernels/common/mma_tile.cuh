// Generated from nbs/22_tensor_cores.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Tiles in shared memory and their products on the tensor cores: what the steps from 22 to 40 share.
//
// A block of 4 warps computes BLOCK_M queries against BLOCK_N keys at a time. A warp owns a quarter of the queries and
// keeps their scores, weights and outputs in its registers, as 16 x 8 tiles: lane 4g + t holds columns 2t and 2t + 1 of
// rows g and g + 8. The four lanes of a quad share their rows.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/ptx/convert.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/mma.h"

constexpr int THREADS = 128;
constexpr int CHUNK = 8;  // elements in 16 bytes: one access of a thread, one row of an ldmatrix tile
constexpr float LN_2 = 0.693147180559945f;

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

// How the rows of a tile lie in shared memory. PLAIN: one after the other. PADDED: one chunk further apart. SWIZZLED:
// as PLAIN, but the chunks of a row are permuted by its number. In the last two, the same chunk of eight consecutive
// rows covers every bank once.
enum class Layout { PLAIN, PADDED, SWIZZLED };

template <class Element, int ROWS, int HEAD_DIM, Layout LAYOUT>
struct SharedTile {
    static constexpr int CHUNKS = HEAD_DIM / CHUNK;
    static constexpr int STRIDE = HEAD_DIM + (LAYOUT == Layout::PADDED ? CHUNK : 0);
    static constexpr int GROUP = CHUNKS % 8 == 0 ? 8 : 4;  // neighbouring chunks, permuted among themselves
    alignas(128) Element elements[ROWS * STRIDE];

    // Where a chunk begins, counted in elements.
    static __device__ int offset(int row, int chunk) {
        if constexpr (LAYOUT == Layout::SWIZZLED) chunk ^= GROUP == 8 ? row % 8 : row / 2 % 4;
        return row * STRIDE + chunk * CHUNK;
    }

    // The same, `rows` rows down and `chunks` chunks to the right of a chunk in column 0 or 1. With `rows` a multiple
    // of 8 and even `chunks`, both constant, it costs at most one XOR: the rest of the way is part of the instruction.
    static __device__ int moved(int offset, int rows, int chunks) {
        const int within = chunks % GROUP * CHUNK, beyond = rows * STRIDE + chunks / GROUP * GROUP * CHUNK;
        return (LAYOUT == Layout::SWIZZLED ? offset ^ within : offset + within) + beyond;
    }
};

// Tile sizes of a kernel and what follows from them for one warp.
template <class Element_, int BLOCK_M_, int BLOCK_N_, int HEAD_DIM_, Layout LAYOUT>
struct MmaConfig {
    using Element = Element_;
    static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_, HEAD_DIM = HEAD_DIM_;
    static constexpr int WARP_ROWS = BLOCK_M / (THREADS / 32);
    static constexpr int M_TILES = WARP_ROWS / 16, N_TILES = BLOCK_N / 8, D_TILES = HEAD_DIM / 8;
    static constexpr float LAZY = 8.0f;  // a maximum is raised when it grew by a factor of more than 2^LAZY
    using QTile = SharedTile<Element, BLOCK_M, HEAD_DIM, LAYOUT>;
    using KvTile = SharedTile<Element, BLOCK_N, HEAD_DIM, LAYOUT>;
    static_assert(WARP_ROWS % 16 == 0, "mma.sync covers 16 rows");
    static_assert(BLOCK_N % 16 == 0 && HEAD_DIM % 32 == 0, "one ldmatrix feeds two products of 8 columns");
};

// What a warp carries from tile to tile, for its rows 16m + 8h + g.
template <class C>
struct WarpState {
    float out[C::M_TILES][C::D_TILES][4];
    float row_max[C::M_TILES][2];
    float row_sum[C::M_TILES][2];  // of this lane's columns

    __device__ WarpState() {
        #pragma unroll
        for (int m = 0; m < C::M_TILES; ++m) {
            #pragma unroll
            for (int h = 0; h < 2; ++h) row_max[m][h] = minus_infinity(), row_sum[m][h] = 0.0f;
            #pragma unroll
            for (int d = 0; d < C::D_TILES; ++d)
                #pragma unroll
                for (int e = 0; e < 4; ++e) out[m][d][e] = 0.0f;
        }
    }
};

// Step kk of the A operand of Q K^T: columns 16kk to 16kk + 15 of the warp's query rows. The quarters of a 16 x 16
// block, each the rows of eight lanes, go from top to bottom and then to the right.
template <class C>
__device__ inline void load_q(uint32_t (&r_q)[C::M_TILES][4], const typename C::QTile& s_q, int kk) {
    const int lane = threadIdx.x % 32, offset = C::QTile::offset(lane % 16, lane / 16);
    const typename C::Element* s_rows = s_q.elements + threadIdx.x / 32 * C::WARP_ROWS * C::QTile::STRIDE;
    #pragma unroll
    for (int m = 0; m < C::M_TILES; ++m) ptx::ldmatrix_x4(r_q[m], s_rows + C::QTile::moved(offset, 16 * m, 2 * kk));
}

// r_scores += Q K^T over step kk. A block of 16 keys is the B operand of two products. Its quarters go to the right
// first: then each operand is a pair of neighbouring registers, which the instruction wants, and nothing is moved.
template <class C>
__device__ inline void multiply_qk(float (&r_scores)[C::M_TILES][C::N_TILES][4], const uint32_t (&r_q)[C::M_TILES][4],
                                   const typename C::KvTile& s_k, int kk) {
    const int lane = threadIdx.x % 32, offset = C::KvTile::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    #pragma unroll
    for (int n = 0; n < C::N_TILES; n += 2) {
        uint32_t r_k[4];
        ptx::ldmatrix_x4(r_k, s_k.elements + C::KvTile::moved(offset, 8 * n, 2 * kk));
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t r_b[2] = {r_k[2 * i], r_k[2 * i + 1]};  // 8 keys, both halves of the step
            #pragma unroll
            for (int m = 0; m < C::M_TILES; ++m) ptx::mma_m16n8k16<typename C::Element>(r_scores[m][n + i], r_q[m], r_b);
        }
    }
}

// out += P V over the 16 keys of step kk. Two neighbouring tiles of weights, rounded in pairs, are the A operand: no lane
// needs a value that it does not hold. V lies with its keys in rows; ldmatrix transposes it on the way.
template <class C>
__device__ inline void multiply_pv(WarpState<C>& r, const float (&r_weights)[C::M_TILES][C::N_TILES][4],
                                   const typename C::KvTile& s_v, int kk) {
    const int lane = threadIdx.x % 32, offset = C::KvTile::offset(lane % 16, lane / 16);
    uint32_t r_p[C::M_TILES][4];
    #pragma unroll
    for (int m = 0; m < C::M_TILES; ++m)
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* pair = &r_weights[m][2 * kk + i / 2][i % 2 * 2];
            r_p[m][i] = ptx::pack<typename C::Element>(pair[0], pair[1]);
        }
    #pragma unroll
    for (int d = 0; d < C::D_TILES; d += 2) {
        uint32_t r_v[4];
        ptx::ldmatrix_x4_trans(r_v, s_v.elements + C::KvTile::moved(offset, 16 * kk, d));
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t r_b[2] = {r_v[2 * i], r_v[2 * i + 1]};  // 8 columns, both halves of the step
            #pragma unroll
            for (int m = 0; m < C::M_TILES; ++m) ptx::mma_m16n8k16<typename C::Element>(r.out[m][d + i], r_p[m], r_b);
        }
    }
}

// Set to minus infinity what a row may not see: its first `visible` keys, counted from the start of the tile, are
// allowed, one more for each further row; and never more than num_keys.
template <class C>
__device__ inline void mask_scores(float (&r_scores)[C::M_TILES][C::N_TILES][4], int visible, int num_keys) {
    const int lane = threadIdx.x % 32;
    #pragma unroll
    for (int m = 0; m < C::M_TILES; ++m)
        #pragma unroll
        for (int n = 0; n < C::N_TILES; ++n)
            #pragma unroll
            for (int e = 0; e < 4; ++e)
                if (8 * n + lane % 4 * 2 + e % 2 >= min(num_keys, visible + lane / 4 + 16 * m + e / 2 * 8))
                    r_scores[m][n][e] = minus_infinity();
}

// Over the quad that shares a row; each of its lanes gets the result.
__device__ inline float row_reduce_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ inline float row_reduce_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Take one tile of scores into the maxima of the rows. A maximum is raised only when it grew by more than 2^LAZY:
// until then weights grow up to that, which float32 sums and 16-bit operands hold as well. So the sum and the output so
// far, computed under the old maximum, are rarely rescaled. Whether a row is raised depends on that row alone.
template <class C>
__device__ inline void raise_max(WarpState<C>& r, const float (&r_scores)[C::M_TILES][C::N_TILES][4], float scale_log2) {
    float rescale[C::M_TILES][2];
    bool raised = false;
    #pragma unroll
    for (int m = 0; m < C::M_TILES; ++m)
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            float new_max = r.row_max[m][h];
            #pragma unroll
            for (int n = 0; n < C::N_TILES; ++n)
                #pragma unroll
                for (int e = 0; e < 2; ++e) new_max = fmaxf(new_max, r_scores[m][n][2 * h + e]);
            new_max = row_reduce_max(new_max);
            const float growth = (new_max - r.row_max[m][h]) * scale_log2;  // first key: infinity; no key yet: NaN
            const bool raise = growth > C::LAZY;
            rescale[m][h] = raise ? ptx::ex2(-growth) : 1.0f;
            r.row_max[m][h] = raise ? new_max : r.row_max[m][h];
            raised |= raise;
        }
    if (!__any_sync(0xffffffff, raised)) return;
    #pragma unroll
    for (int m = 0; m < C::M_TILES; ++m)
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            r.row_sum[m][h] *= rescale[m][h];
            #pragma unroll
            for (int d = 0; d < C::D_TILES; ++d)
                #pragma unroll
                for (int e = 0; e < 2; ++e) r.out[m][d][2 * h + e] *= rescale[m][h];
        }
}

// Scores to weights, 2^(score - row_max), in place, for the 16 keys of step kk.
template <class C>
__device__ inline void exponentiate(WarpState<C>& r, float (&r_scores)[C::M_TILES][C::N_TILES][4], float scale_log2,
                                    int kk) {
    #pragma unroll
    for (int m = 0; m < C::M_TILES; ++m)
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float row_max = r.row_max[m][h];
            const float shift = row_max == minus_infinity() ? 0.0f : row_max * scale_log2;  // no key yet: 2^(-inf - 0) = 0
            #pragma unroll
            for (int n = 2 * kk; n < 2 * kk + 2; ++n)
                #pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; ++e) {
                    r_scores[m][n][e] = ptx::ex2(r_scores[m][n][e] * scale_log2 - shift);
                    r.row_sum[m][h] += r_scores[m][n][e];
                }
        }
}

// Divide the warp's rows by their sums and write them, and their lse. A row that saw no key has sum 0 and becomes 0; NaN
// stays NaN. The outputs pass through the warp's own rows of the Q tile, so that they leave in whole 16-byte chunks.
template <class C>
__device__ inline void store_rows(const WarpState<C>& r, typename C::QTile& s_q, typename C::Element* g_out,
                                  long long out_row, float* g_lse, int num_rows, int head_dim, float scale_log2) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * C::WARP_ROWS;
    #pragma unroll
    for (int m = 0; m < C::M_TILES; ++m)
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp_row + 16 * m + 8 * h + lane / 4;
            const float sum = row_reduce_sum(r.row_sum[m][h]), inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
            if (g_lse && lane % 4 == 0 && row < num_rows) g_lse[row] = (r.row_max[m][h] * scale_log2 + log2f(sum)) * LN_2;
            #pragma unroll
            for (int d = 0; d < C::D_TILES; ++d) {
                const float* pair = &r.out[m][d][2 * h];
                uint32_t* s_pairs = reinterpret_cast<uint32_t*>(s_q.elements + C::QTile::offset(row, d));
                s_pairs[lane % 4] = ptx::pack<typename C::Element>(pair[0] * inverse, pair[1] * inverse);
            }
        }
    __syncwarp();  // the rows are complete, written and read by this warp alone
    #pragma unroll 4
    for (int i = lane; i < C::WARP_ROWS * C::QTile::CHUNKS; i += 32) {
        const int row = warp_row + i / C::QTile::CHUNKS, chunk = i % C::QTile::CHUNKS;
        if (row < num_rows && chunk * CHUNK < head_dim)
            *reinterpret_cast<uint4*>(g_out + row * out_row + chunk * CHUNK) =
                *reinterpret_cast<const uint4*>(s_q.elements + C::QTile::offset(row, chunk));
    }
}
