// Generated from nbs/20_online_softmax.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// Step 20, online softmax: exact attention in one pass over the keys.
// As step 10, one block of 128 threads owns BLOCK_M queries of one head. New: the row maximum and the
// row sum are running values, and what was accumulated under an older maximum is rescaled.
#include "common/simt_tile.cuh"

template <class Element, int BLOCK_M, int BLOCK_N, int HEAD_DIM>
using Config = TileConfig<Element, BLOCK_M, BLOCK_N, HEAD_DIM>;

extern __shared__ __align__(1024) unsigned char smem_raw[];

// Take one tile of scores into a row's softmax: the maximum may grow, and then the sum and the output so
// far, which were computed under the smaller one, shrink by the same factor. Writes the tile's weights.
template <class C>
__device__ inline void update_row(float& row_max, float& row_sum, float (&r_out)[C::PAIRS][2],
                                  float (&s_row)[C::BLOCK_N + 4], const float (&r_scores)[C::COLUMNS]) {
    const int tx = threadIdx.x % THREADS_X;
    float new_max = row_max;
    #pragma unroll
    for (int j = 0; j < C::COLUMNS; ++j) new_max = fmaxf(new_max, r_scores[j]);
    new_max = row_reduce_max(new_max);
    const float shift = new_max == minus_infinity() ? 0.0f : new_max;  // no key yet: 2^(-inf - 0) = 0
    const float rescale = exp2f(row_max - shift);                      // first tile: 2^(-inf) = 0
    row_max = new_max;
    row_sum *= rescale;
    #pragma unroll
    for (int c = 0; c < C::PAIRS; ++c) {
        r_out[c][0] *= rescale;
        r_out[c][1] *= rescale;
    }
    #pragma unroll
    for (int j = 0; j < C::COLUMNS; ++j) {
        const float weight = exp2f(r_scores[j] - shift);
        s_row[tx + j * THREADS_X] = weight;
        row_sum += weight;
    }
}

template <class C>
__global__ void __launch_bounds__(THREADS, C::MIN_BLOCKS) attention_online_kernel(
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

    for (int n_start = 0; n_start < num_keys; n_start += C::BLOCK_N) {
        __syncthreads();  // every thread is done with the previous tiles; otherwise they are overwritten while read
        load_tile<C::BLOCK_N, C::HEAD_DIM>(smem.k, g_k + n_start * k_row, k_row, seqlen_k - n_start, head_dim);
        load_tile<C::BLOCK_N, C::HEAD_DIM>(smem.v, g_v + n_start * v_row, v_row, seqlen_k - n_start, head_dim);
        __syncthreads();  // the tiles, and before the first ones Q, are complete
        multiply_qk<C>(r_scores, smem);
        #pragma unroll
        for (int i = 0; i < C::ROWS; ++i) {
            const int row = ty + i * THREADS_Y, visible = min(seqlen_k, m_start + row + diagonal) - n_start;
            scale_and_mask<C>(r_scores[i], visible, softmax_scale_log2);
            update_row<C>(row_max[i], row_sum[i], r_out[i], smem.s[row], r_scores[i]);
        }
        __syncwarp();  // the weights of a row are written and read by the same warp
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
