// Generated from nbs/22_tensor_cores.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Step 22, tensor cores: the products of step 20 by mma.sync, the softmax in registers.
// A block of 4 warps owns BLOCK_M queries of one head, a warp a quarter of them. New: operands come from shared memory
// by ldmatrix, in the order the tensor cores want; scores and weights never leave the registers of their warp.
#include "common/mma_tile.cuh"

// LOAD_BYTES: how much a thread copies at a time from global to shared memory.
template <class Element, int BLOCK_M, int BLOCK_N, int HEAD_DIM, Layout LAYOUT = Layout::SWIZZLED, int LOAD_BYTES_ = 16>
struct Config : MmaConfig<Element, BLOCK_M, BLOCK_N, HEAD_DIM, LAYOUT> {
    static constexpr int LOAD_BYTES = LOAD_BYTES_;
    static_assert(LOAD_BYTES == 2 || LOAD_BYTES == 16);
};

template <class C>
struct SharedStorage {
    typename C::QTile q;  // a warp's rows later hold its outputs
    typename C::KvTile k, v;
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

// Copy the first num_rows rows and head_dim columns of a matrix into a tile; zero the rest, so that a key beyond the
// end contributes 0 and not what the memory held. Rows start at 16-byte boundaries.
template <class C, int ROWS, class Tile>
__device__ inline void load_tile(Tile& s_tile, const typename C::Element* g_rows, long long row_stride, int num_rows,
                                 int head_dim) {
    constexpr int WIDTH = C::LOAD_BYTES / 2;  // elements
    #pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * C::HEAD_DIM / WIDTH; i += THREADS) {
        const int row = i / (C::HEAD_DIM / WIDTH), column = i % (C::HEAD_DIM / WIDTH) * WIDTH;
        const bool inside = row < num_rows && column < head_dim;
        const typename C::Element* g_source = &g_rows[row * row_stride + column];
        typename C::Element* s_target = s_tile.elements + Tile::offset(row, column / CHUNK) + column % CHUNK;
        if constexpr (WIDTH == 1)
            *s_target = inside ? *g_source : typename C::Element(0.0f);
        else
            *reinterpret_cast<uint4*>(s_target) =
                inside ? *reinterpret_cast<const uint4*>(g_source) : make_uint4(0, 0, 0, 0);
    }
}

template <class C>
__global__ void __launch_bounds__(THREADS, 2) attention_tensor_cores_kernel(
    const typename C::Element* g_q, const typename C::Element* g_k, const typename C::Element* g_v,
    typename C::Element* g_out,  // [batch, num_heads, seqlen_q, head_dim]; the last dimension of all four is contiguous
    float* g_lse,                // [batch, num_heads, seqlen_q], natural log, contiguous; or null
    long long q_batch, long long q_head, long long q_row, long long k_batch, long long k_head, long long k_row,
    long long v_batch, long long v_head, long long v_row,
    long long out_batch, long long out_head, long long out_row,  // strides, in elements
    int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int head_dim, int causal, float softmax_scale_log2) {
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const int m_start = (gridDim.x - 1 - blockIdx.x) * C::BLOCK_M;  // longest causal rows first
    const int warp_start = m_start + threadIdx.x / 32 * C::WARP_ROWS;
    const int head = blockIdx.y, head_k = head / (num_heads / num_heads_k), batch = blockIdx.z;
    g_k += batch * k_batch + head_k * k_head;
    g_v += batch * v_batch + head_k * v_head;
    load_tile<C, C::BLOCK_M>(smem.q, g_q + batch * q_batch + head * q_head + m_start * q_row, q_row,
                             seqlen_q - m_start, head_dim);

    // Row m sees the keys before m + diagonal; with a causal mask the last query sees the last key.
    const int diagonal = causal ? seqlen_k - seqlen_q + 1 : seqlen_k;
    const int num_keys = min(seqlen_k, m_start + C::BLOCK_M - 1 + diagonal);  // beyond it nothing is visible here

    WarpState<C> r;
    for (int n_start = 0; n_start < num_keys; n_start += C::BLOCK_N) {
        __syncthreads();  // every thread is done with the previous tiles; otherwise they are overwritten while read
        load_tile<C, C::BLOCK_N>(smem.k, g_k + n_start * k_row, k_row, seqlen_k - n_start, head_dim);
        load_tile<C, C::BLOCK_N>(smem.v, g_v + n_start * v_row, v_row, seqlen_k - n_start, head_dim);
        __syncthreads();  // the tiles, and before the first ones Q, are complete
        float r_scores[C::M_TILES][C::N_TILES][4] = {};
        #pragma unroll
        for (int kk = 0; kk < C::HEAD_DIM / 16; ++kk) {
            uint32_t r_q[C::M_TILES][4];
            load_q<C>(r_q, smem.q, kk);
            multiply_qk<C>(r_scores, r_q, smem.k, kk);
        }
        const int visible = warp_start + diagonal - n_start;  // keys of this tile that the warp's first row sees
        if (min(visible, seqlen_k - n_start) < C::BLOCK_N) mask_scores<C>(r_scores, visible, seqlen_k - n_start);
        raise_max<C>(r, r_scores, softmax_scale_log2);
        #pragma unroll
        for (int kk = 0; kk < C::BLOCK_N / 16; ++kk) {
            exponentiate<C>(r, r_scores, softmax_scale_log2, kk);
            multiply_pv<C>(r, r_scores, smem.v, kk);
        }
    }
    if (g_lse) g_lse += (long long)(batch * num_heads + head) * seqlen_q + m_start;
    __syncthreads();  // Q is complete, also where there are no keys: otherwise outputs are overwritten by queries
    store_rows<C>(r, smem.q, g_out + batch * out_batch + head * out_head + m_start * out_row, out_row, g_lse,
                  seqlen_q - m_start, head_dim, softmax_scale_log2);
}
