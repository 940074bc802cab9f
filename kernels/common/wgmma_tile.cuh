// Generated from nbs/44_wgmma.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// 64 queries of a warpgroup against tiles of keys and values, by WGMMA: what steps 44 and 46 share.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/ptx/convert.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/register.h"
#include "common/ptx/wgmma.h"
#include "common/tma_ring.cuh"

constexpr float LN_2 = 0.693147180559945f;

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

template <class Element_, int BLOCK_M_, int BLOCK_N_, int HEAD_DIM_, int STAGES_>
struct WgmmaConfig {
    using Element = Element_;
    static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_, HEAD_DIM = HEAD_DIM_, STAGES = STAGES_;
    static constexpr int WARPGROUPS = BLOCK_M / 64, THREADS = 128 * (WARPGROUPS + 1);  // and one for the producer
    // A thread starts with 168 registers (128 if there are three consumer warpgroups); the producer gives most away.
    static constexpr int PRODUCER_REGISTERS = WARPGROUPS == 2 ? 24 : 32, CONSUMER_REGISTERS = WARPGROUPS == 2 ? 240 : 160;
    static constexpr float LAZY = 8.0f;  // a maximum is raised when it grew by a factor of more than 2^LAZY
    using QTile = PanelTile<Element, BLOCK_M, HEAD_DIM>;
    using KvTile = PanelTile<Element, BLOCK_N, HEAD_DIM>;
    static_assert(BLOCK_M == 128 || BLOCK_M == 192, "one WGMMA covers 64 rows; two or three warpgroups of consumers");
    static_assert(BLOCK_N % 16 == 0, "whole k steps of the second product");
};

// What a thread holds of its warpgroup's 64 queries: of rows lane/4 and lane/4 + 8 of its warp's 16, two neighbouring
// columns out of every eight. Registers 4i and 4i + 1 belong to the first of the rows, 4i + 2 and 4i + 3 to the second.
template <class C>
struct RowState {
    float scores[C::BLOCK_N / 2];       // of one tile of keys; then weights
    uint32_t weights[C::BLOCK_N / 4];   // the same, rounded in pairs: the A operand of the second product
    float out[C::HEAD_DIM / 2] = {};    // before its division by row_sum
    float row_max[2] = {minus_infinity(), minus_infinity()};
    float row_sum[2] = {};              // of this thread's columns
};

// Start scores = Q K^T. Both tiles lie in rows of head_dim, which is what is summed over: K-major. A step of 16 columns
// is 32 bytes further in the same panel; four steps, then the next panel.
template <class C>
__device__ __forceinline__ void start_qk(RowState<C>& r, const typename C::QTile& s_q, const typename C::KvTile& s_k,
                                         int warpgroup) {
    const ptx::MatrixDescriptor a = ptx::k_major(s_q.elements + 64 * warpgroup * C::QTile::PANEL);
    const ptx::MatrixDescriptor b = ptx::k_major(s_k.elements);
    #pragma unroll
    for (int kk = 0; kk < C::HEAD_DIM / 16; ++kk)
        ptx::wgmma_ss<C::BLOCK_N, typename C::Element>(r.scores, a + (kk / 4 * C::QTile::PANEL_BYTES + kk % 4 * 32),
                                                       b + (kk / 4 * C::KvTile::PANEL_BYTES + kk % 4 * 32), kk > 0);
    ptx::wgmma_commit();
}

// Start out += P V. Keys, over which this product sums, are the rows of V: MN-major. A step of 16 keys is 16 rows.
template <class C>
__device__ __forceinline__ void start_pv(RowState<C>& r, const typename C::KvTile& s_v) {
    const ptx::MatrixDescriptor b = ptx::mn_major(s_v.elements, C::KvTile::PANEL_BYTES);
    #pragma unroll
    for (int kk = 0; kk < C::BLOCK_N / 16; ++kk)
        ptx::wgmma_rs<C::HEAD_DIM, typename C::Element, ptx::MN_MAJOR>(
            r.out, reinterpret_cast<const uint32_t(&)[4]>(r.weights[4 * kk]), b + kk * 16 * 128);
    ptx::wgmma_commit();
}

// Set to minus infinity what a row may not see: the warpgroup's first row its first `visible` keys, counted from the
// start of the tile, one more for each further row; and none more than num_keys.
template <class C>
__device__ __forceinline__ void mask_scores(RowState<C>& r, int visible, int num_keys) {
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int limit = min(num_keys, visible + row + 8 * h) - column;
        #pragma unroll
        for (int i = 0; i < C::BLOCK_N / 2; i += 4)
            #pragma unroll
            for (int e = 0; e < 2; ++e)
                if (2 * i + e >= limit) r.scores[i + 2 * h + e] = minus_infinity();
    }
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Take a tile of scores into the maxima of the rows, lazily as in step 22. No product may be under way.
template <class C>
__device__ __forceinline__ void raise_max(RowState<C>& r, float scale_log2) {
    float rescale[2];
    bool raised = false;
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        float even = r.scores[2 * h], odd = r.scores[2 * h + 1];  // two chains, half as long
        #pragma unroll
        for (int i = 2 * h + 4; i < C::BLOCK_N / 2; i += 4) {
            even = fmaxf(even, r.scores[i]);
            odd = fmaxf(odd, r.scores[i + 1]);
        }
        const float new_max = quad_max(fmaxf(even, odd));
        const float growth = (new_max - r.row_max[h]) * scale_log2;  // first key: infinity; no key yet: NaN
        const bool raise = growth > C::LAZY;
        rescale[h] = raise ? ptx::ex2(-growth) : 1.0f;
        r.row_max[h] = raise ? new_max : r.row_max[h];
        raised |= raise;
    }
    if (!__any_sync(0xffffffff, raised)) return;
    #pragma unroll
    for (int h = 0; h < 2; ++h) r.row_sum[h] *= rescale[h];
    #pragma unroll
    for (int i = 0; i < C::HEAD_DIM / 2; ++i) r.out[i] *= rescale[i / 2 % 2];
}

// Scores to weights, 2^(score - row_max), their sum, and their rounded pairs.
template <class C>
__device__ __forceinline__ void exponentiate(RowState<C>& r, float scale_log2) {
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float row_max = r.row_max[h];
        const float shift = row_max == minus_infinity() ? 0.0f : row_max * scale_log2;  // no key yet: 2^(-inf - 0) = 0
        float sum[2] = {};
        #pragma unroll
        for (int i = 2 * h; i < C::BLOCK_N / 2; i += 4) {
            #pragma unroll
            for (int e = 0; e < 2; ++e) {
                r.scores[i + e] = ptx::ex2(fmaf(r.scores[i + e], scale_log2, -shift));
                sum[e] += r.scores[i + e];
            }
            r.weights[i / 2] = ptx::pack<typename C::Element>(r.scores[i], r.scores[i + 1]);
        }
        r.row_sum[h] += sum[0] + sum[1];
    }
}

// Divide the warpgroup's rows by their sums and write them, and their lse, through its own rows of the tile of queries.
// A row that saw no key has sum 0 and becomes 0; NaN stays NaN.
template <class C>
__device__ __forceinline__ void store_rows(const RowState<C>& r, typename C::QTile& s_q, const CUtensorMap* map_out,
                                           float* g_lse, int m_start, int seqlen_q, int head, int batch, float scale_log2) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 128 * 64, warp_row = first + threadIdx.x % 128 / 32 * 16;
    float inverse[2];
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int m = m_start + warp_row + lane / 4 + 8 * h;
        const float sum = quad_sum(r.row_sum[h]);
        inverse[h] = sum == 0.0f ? 0.0f : 1.0f / sum;
        if (g_lse && lane % 4 == 0 && m < seqlen_q) g_lse[m] = (r.row_max[h] * scale_log2 + log2f(sum)) * LN_2;
    }
    #pragma unroll
    for (int i = 0; i < C::HEAD_DIM / 2; i += 8) {  // 16 columns
        uint32_t r_pairs[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j)
            r_pairs[j] = ptx::pack<typename C::Element>(r.out[i + 2 * j] * inverse[j % 2], r.out[i + 2 * j + 1] * inverse[j % 2]);
        ptx::stmatrix_x4(s_q.elements + C::QTile::offset(warp_row + lane % 16, i / 4 + lane / 16), r_pairs);
    }
    ptx::fence_proxy_async();                    // TMA shall see what this thread has written
    ptx::bar_sync(1 + threadIdx.x / 128, 128);  // all rows of the warpgroup are written
    if (threadIdx.x % 128) return;
    #pragma unroll
    for (int column = 0; column < C::HEAD_DIM; column += C::QTile::PANEL)
        ptx::tma_store<4>(map_out, {column, m_start + first, head, batch},
                          s_q.elements + column * C::BLOCK_M + first * C::QTile::PANEL);
    ptx::tma_commit();
    ptx::tma_wait_read<0>();  // shared memory must not go before TMA has read it
}
