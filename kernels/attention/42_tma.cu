// Generated from nbs/42_tma.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Step 42, TMA and mbarriers: one thread copies whole tiles, and barriers in shared memory count the bytes.
// A block has 8 warps. One thread of warps 4 to 7 keeps rings of K and of V filled; warps 0 to 3 do step 22's products
// and softmax on them. New against step 32: no thread computes a copy's address, no register holds its data.
#include "common/mma_tile.cuh"
#include "common/ptx/register.h"
#include "common/tma_ring.cuh"

constexpr int BLOCK_THREADS = 2 * THREADS;  // THREADS consumers; setmaxnreg is for whole warpgroups, so 127 idle producers

template <class Element, int BLOCK_M, int BLOCK_N, int HEAD_DIM, int STAGES_>
struct Config : MmaConfig<Element, BLOCK_M, BLOCK_N, HEAD_DIM, Layout::SWIZZLED> {
    static constexpr int STAGES = STAGES_;
    static constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 232;  // of 128 that a thread starts with
    static_assert(PRODUCER_REGISTERS + CONSUMER_REGISTERS <= 256, "2 blocks of 256 threads share 65,536 registers");
    using QTile = PanelTile<Element, BLOCK_M, HEAD_DIM>;
    using KvTile = PanelTile<Element, BLOCK_N, HEAD_DIM>;
};

template <class C>
struct SharedStorage {
    typename C::QTile q;  // a warp's rows later hold its outputs
    Ring<typename C::KvTile, C::STAGES> k, v;
    uint64_t q_full;
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

// One thread: queries, then tile after tile of keys and values.
template <class C>
__device__ inline void produce(SharedStorage<C>& smem, const CUtensorMap* map_q, const CUtensorMap* map_k,
                               const CUtensorMap* map_v, int num_tiles, int m_start, int head, int head_k, int batch) {
    smem.q.load(map_q, &smem.q_full, m_start, head, batch);
    Slot<C::STAGES> slot;
    for (int tile = 0; tile < num_tiles; ++tile, slot.next()) {
        smem.k.load(slot, map_k, tile * C::BLOCK_N, head_k, batch);
        smem.v.load(slot, map_v, tile * C::BLOCK_N, head_k, batch);
    }
}

// Warps 0 to 3: multiply tile after tile.
template <class C>
__device__ inline void consume(WarpState<C>& r, SharedStorage<C>& smem, int num_tiles, int first_visible, int seqlen_k,
                               float softmax_scale_log2) {
    Slot<C::STAGES> slot;
    for (int tile = 0; tile < num_tiles; ++tile, slot.next()) {
        const int n_start = tile * C::BLOCK_N;
        const typename C::KvTile& s_k = smem.k.wait(slot);
        float r_scores[C::M_TILES][C::N_TILES][4] = {};
        #pragma unroll
        for (int kk = 0; kk < C::HEAD_DIM / 16; ++kk) {
            uint32_t r_q[C::M_TILES][4];
            load_q<C>(r_q, smem.q, kk);
            multiply_qk<C>(r_scores, r_q, s_k, kk);
        }
        smem.k.release(slot);
        const int visible = first_visible - n_start;  // keys of this tile that the warp's first row sees
        if (min(visible, seqlen_k - n_start) < C::BLOCK_N) mask_scores<C>(r_scores, visible, seqlen_k - n_start);
        raise_max<C>(r, r_scores, softmax_scale_log2);
        const typename C::KvTile& s_v = smem.v.wait(slot);
        #pragma unroll
        for (int kk = 0; kk < C::BLOCK_N / 16; ++kk) {
            exponentiate<C>(r, r_scores, softmax_scale_log2, kk);
            multiply_pv<C>(r, r_scores, s_v, kk);
        }
        smem.v.release(slot);
    }
}

template <class C>
__global__ void __launch_bounds__(BLOCK_THREADS, 2) attention_tma_kernel(
    const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
    const __grid_constant__ CUtensorMap map_v,  // boxes: one panel of a tile
    typename C::Element* g_out,                 // [batch, num_heads, seqlen_q, head_dim], the last dimension contiguous
    float* g_lse,                               // [batch, num_heads, seqlen_q], natural log, contiguous; or null
    long long out_batch, long long out_head, long long out_row,  // strides, in elements
    int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int head_dim, int causal, float softmax_scale_log2) {
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const int m_start = (gridDim.x - 1 - blockIdx.x) * C::BLOCK_M;  // longest causal rows first
    const int head = blockIdx.y, head_k = head / (num_heads / num_heads_k), batch = blockIdx.z;

    // Row m sees the keys before m + diagonal; with a causal mask the last query sees the last key.
    const int diagonal = causal ? seqlen_k - seqlen_q + 1 : seqlen_k;
    const int num_keys = min(seqlen_k, m_start + C::BLOCK_M - 1 + diagonal);  // beyond it nothing is visible here
    const int num_tiles = num_keys > 0 ? (num_keys + C::BLOCK_N - 1) / C::BLOCK_N : 0;

    if (threadIdx.x == 0) {
        ptx::mbar_init(&smem.q_full, 1);
        smem.k.init(THREADS / 32);
        smem.v.init(THREADS / 32);
        ptx::mbar_fence_init();
    }
    __syncthreads();  // no thread may use a barrier before it is initialised, nor may TMA

    if (threadIdx.x >= THREADS) {
        ptx::reg_dealloc<C::PRODUCER_REGISTERS>();
        if (threadIdx.x == THREADS) produce<C>(smem, &map_q, &map_k, &map_v, num_tiles, m_start, head, head_k, batch);
    } else {
        ptx::reg_alloc<C::CONSUMER_REGISTERS>();
        WarpState<C> r;
        ptx::mbar_wait(&smem.q_full, 0);
        consume<C>(r, smem, num_tiles, m_start + threadIdx.x / 32 * C::WARP_ROWS + diagonal, seqlen_k, softmax_scale_log2);
        if (g_lse) g_lse += (long long)(batch * num_heads + head) * seqlen_q + m_start;
        store_rows<C>(r, smem.q, g_out + batch * out_batch + head * out_head + m_start * out_row, out_row, g_lse,
                      seqlen_q - m_start, head_dim, softmax_scale_log2);
    }
}
