// Generated from nbs/10_tiling.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// Step 10, basic tiling: exact attention in two passes over the keys, tile by tile.
// One block of 128 threads owns BLOCK_M queries of one head. K and V pass through shared memory in
// tiles of BLOCK_N keys; the score matrix exists only as one tile at a time.
#include "common/simt_tile.cuh"

enum class Softmax { PER_TILE, TWO_PASS };

template <class Element, int BLOCK_M, int BLOCK_N, int HEAD_DIM, Softmax SOFTMAX_ = Softmax::TWO_PASS>
struct Config : TileConfig<Element, BLOCK_M, BLOCK_N, HEAD_DIM> {
    static constexpr Softmax SOFTMAX = SOFTMAX_;
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

// Scores of one key tile, scaled and masked. Starts with the barrier that lets the tile be overwritten.
template <class C>
__device__ inline void score_tile(float (&r_scores)[C::ROWS][C::COLUMNS], SharedStorage<C>& smem,
                                  const typename C::Element* g_k, long long k_row, int num_keys, int head_dim,
                                  int visible, float softmax_scale_log2) {
    __syncthreads();  // every thread is done with the previous tile; otherwise it is overwritten while read
    load_tile<C::BLOCK_N, C::HEAD_DIM>(smem.k, g_k, k_row, num_keys, head_dim);
    __syncthreads();  // the tile, and before the first one Q, is complete
    multiply_qk<C>(r_scores, smem);
    #pragma unroll
    for (int i = 0; i < C::ROWS; ++i)
        scale_and_mask<C>(r_scores[i], min(num_keys, visible + i * THREADS_Y), softmax_scale_log2);
}

// Weights of one row, 2^(score - row_max), into the S tile; returns this thread's share of their sum.
template <class C>
__device__ inline float exponentiate(float (&s_row)[C::BLOCK_N + 4], float (&r_scores)[C::COLUMNS], float row_max) {
    const int tx = threadIdx.x % THREADS_X;
    const float shift = row_max == minus_infinity() ? 0.0f : row_max;  // a row without keys: 2^(-inf - 0) = 0
    float sum = 0.0f;
    #pragma unroll
    for (int j = 0; j < C::COLUMNS; ++j) {
        r_scores[j] = exp2f(r_scores[j] - shift);
        s_row[tx + j * THREADS_X] = r_scores[j];
        sum += r_scores[j];
    }
    return sum;
}

// The tempting shortcut: a softmax over this tile alone. Returns this thread's share of one tile, so that
// the sum over tiles counts them and the output becomes their average.
template <class C>
__device__ inline float softmax_within_tile(float (&s_row)[C::BLOCK_N + 4], float (&r_scores)[C::COLUMNS]) {
    const int tx = threadIdx.x % THREADS_X;
    float tile_max = minus_infinity();
    #pragma unroll
    for (int j = 0; j < C::COLUMNS; ++j) tile_max = fmaxf(tile_max, r_scores[j]);
    const float tile_sum = row_reduce_sum(exponentiate<C>(s_row, r_scores, row_reduce_max(tile_max)));
    if (tile_sum == 0.0f) return 0.0f;
    #pragma unroll
    for (int j = 0; j < C::COLUMNS; ++j) s_row[tx + j * THREADS_X] = r_scores[j] / tile_sum;
    return 1.0f / THREADS_X;
}

template <class C>
__global__ void __launch_bounds__(THREADS, C::MIN_BLOCKS) attention_tiling_kernel(
    const typename C::Element* g_q, const typename C::Element* g_k, const typename C::Element* g_v,
    typename C::Element* g_out,  // [batch, num_heads, seqlen_q, head_dim]; the last dimension of all four is contiguous
    float* g_lse,                // [batch, num_heads, seqlen_q], natural log, contiguous; or null
    long long q_batch, long long q_head, long long q_row, long long k_batch, long long k_head, long long k_row,
    long long v_batch, long long v_head, long long v_row,
    long long out_batch, long long out_head, long long out_row,  // strides, in elements
    int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int head_dim, int causal, float softmax_scale_log2) {
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const int tx = threadIdx.x % THREADS_X, ty = threadIdx.x / THREADS_X;
    const int m_start = (gridDim.x - 1 - blockIdx.x) * C::BLOCK_M;  // longest causal rows first
    const int head = blockIdx.y, head_k = head / (num_heads / num_heads_k), batch = blockIdx.z;
    g_k += batch * k_batch + head_k * k_head;
    g_v += batch * v_batch + head_k * v_head;
    load_tile<C::BLOCK_M, C::HEAD_DIM>(smem.q, g_q + batch * q_batch + head * q_head + m_start * q_row, q_row,
                                       seqlen_q - m_start, head_dim);

    // Row m sees the keys before m + diagonal; with a causal mask the last query sees the last key.
    const int diagonal = causal ? seqlen_k - seqlen_q + 1 : seqlen_k;
    const int num_keys = min(seqlen_k, m_start + C::BLOCK_M - 1 + diagonal);  // beyond it nothing is visible here

    float r_scores[C::ROWS][C::COLUMNS], r_out[C::ROWS][C::PAIRS][2] = {}, row_max[C::ROWS], row_sum[C::ROWS] = {};
    #pragma unroll
    for (int i = 0; i < C::ROWS; ++i) row_max[i] = minus_infinity();

    // First pass: the maximum of every row, which needs all of its scores.
    if constexpr (C::SOFTMAX == Softmax::TWO_PASS) {
        for (int n_start = 0; n_start < num_keys; n_start += C::BLOCK_N) {
            score_tile<C>(r_scores, smem, g_k + n_start * k_row, k_row, seqlen_k - n_start, head_dim,
                          m_start + ty + diagonal - n_start, softmax_scale_log2);
            #pragma unroll
            for (int i = 0; i < C::ROWS; ++i)
                #pragma unroll
                for (int j = 0; j < C::COLUMNS; ++j) row_max[i] = fmaxf(row_max[i], r_scores[i][j]);
        }
        #pragma unroll
        for (int i = 0; i < C::ROWS; ++i) row_max[i] = row_reduce_max(row_max[i]);
    }

    // Second pass: the same scores again, their weights, and the weighted sum of V.
    for (int n_start = 0; n_start < num_keys; n_start += C::BLOCK_N) {
        score_tile<C>(r_scores, smem, g_k + n_start * k_row, k_row, seqlen_k - n_start, head_dim,
                      m_start + ty + diagonal - n_start, softmax_scale_log2);
        load_tile<C::BLOCK_N, C::HEAD_DIM>(smem.v, g_v + n_start * v_row, v_row, seqlen_k - n_start, head_dim);
        #pragma unroll
        for (int i = 0; i < C::ROWS; ++i) {
            if constexpr (C::SOFTMAX == Softmax::TWO_PASS)
                row_sum[i] += exponentiate<C>(smem.s[ty + i * THREADS_Y], r_scores[i], row_max[i]);
            else
                row_sum[i] += softmax_within_tile<C>(smem.s[ty + i * THREADS_Y], r_scores[i]);
        }
        __syncthreads();  // V is complete, and so are the weights of every row
        multiply_sv<C>(r_out, smem);
    }

    g_out += batch * out_batch + head * out_head;
    if (g_lse) g_lse += (long long)(batch * num_heads + head) * seqlen_q;
    #pragma unroll
    for (int i = 0; i < C::ROWS; ++i) {
        const int row = m_start + ty + i * THREADS_Y;
        const float sum = row_reduce_sum(row_sum[i]);
        if (row >= seqlen_q) continue;
        store_row<C>(g_out + row * out_row, r_out[i], sum, head_dim);
        if (g_lse && tx == 0) g_lse[row] = (row_max[i] + log2f(sum)) * LN_2;
    }
}
