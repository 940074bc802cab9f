// Generated from nbs/40_cp_async.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Step 40, cp.async: the tiles of step 22 arrive while others are multiplied.
// K and V tiles pass through a ring in shared memory. All warps start its copies and none waits for the newest ones.
#include "common/mma_tile.cuh"
#include "common/ptx/cp_async.h"

// The ring has STAGES stages of STAGE_TILES tiles: 2, a tile of K and the V that goes with it, or 1, K and V in turn.
// Between two barriers one stage is consumed and one is refilled.
// Q_IN_REGISTERS: a warp keeps its queries there from the start, instead of reading them again with every tile.
// PEELED: the tiles without a mask have a loop of their own. Measured: it helps where registers are plenty.
template <class Element, int BLOCK_M, int BLOCK_N, int HEAD_DIM, int STAGES_, int STAGE_TILES_, int Q_IN_REGISTERS_,
          bool PEELED_ = HEAD_DIM <= 64>
struct Config : MmaConfig<Element, BLOCK_M, BLOCK_N, HEAD_DIM, Layout::SWIZZLED> {
    static constexpr int STAGES = STAGES_, STAGE_TILES = STAGE_TILES_, TILES = STAGES * STAGE_TILES;
    static constexpr bool Q_IN_REGISTERS = Q_IN_REGISTERS_, PEELED = PEELED_;
    static constexpr int Q_STEPS = Q_IN_REGISTERS ? HEAD_DIM / 16 : 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    static constexpr int UNROLL = Q_IN_REGISTERS ? HEAD_DIM / 16 : 1;  // head_dim 128 spills when unrolled
#else
    static constexpr int UNROLL = HEAD_DIM / 16;
#endif
    static_assert(STAGES >= 2, "one stage is read while another is written");
    static_assert(STAGE_TILES == 1 || STAGE_TILES == 2, "K and V in turn, or together");
};

template <class C>
struct SharedStorage {
    typename C::QTile q;  // a warp's rows later hold its outputs
    typename C::KvTile ring[C::TILES];
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

// This thread's part in copying a matrix tile by tile, from the last to the first. GROUP threads share a row, so that a
// thread's chunks lie at constant distances from each other, in memory and in the tile.
template <class C, class Tile, int ROWS>
struct TileCopier {
    static constexpr int ROW_STEP = THREADS / Tile::GROUP;
    static_assert(ROWS % ROW_STEP == 0 && ROW_STEP % 8 == 0, "the swizzle repeats after 8 rows");
    const typename C::Element* g_next;  // its first chunk of the next tile
    long long row_stride;

    __device__ TileCopier(const typename C::Element* g_tile, long long row_stride)
        : g_next(g_tile + threadIdx.x / Tile::GROUP * row_stride + threadIdx.x % Tile::GROUP * CHUNK),
          row_stride(row_stride) {}

    // Start copying a tile and step to the one before it; zeros beyond num_rows and head_dim.
    __device__ void copy_next(Tile& s_tile, int num_rows, int head_dim) {
        const int row = threadIdx.x / Tile::GROUP, chunk = threadIdx.x % Tile::GROUP, num_chunks = head_dim / CHUNK;
        typename C::Element* s_target = s_tile.elements + Tile::offset(row, chunk);
        const typename C::Element* g_source = g_next;
        #pragma unroll
        for (int start = 0; start < ROWS; start += ROW_STEP, g_source += ROW_STEP * row_stride)
            #pragma unroll
            for (int c = 0; c < Tile::CHUNKS; c += Tile::GROUP)
                ptx::cp_async_16(s_target + start * Tile::STRIDE + c * CHUNK, g_source + c * CHUNK,
                                 row < (chunk + c < num_chunks ? num_rows : 0) - start);
        g_next -= ROWS * row_stride;
    }
};

// The ring as one thread sees it. A stage's copies are one cp.async group, empty when there is nothing left to copy.
template <class C>
struct Ring {
    typename C::KvTile (&s_tiles)[C::TILES];
    TileCopier<C, typename C::KvTile, C::BLOCK_N> k, v;
    int seqlen_k, head_dim;
    int stage = 0;  // the one being consumed

    // Start filling a stage for `tile`, with K (PARITY 0), with V (1), or with both where a stage holds a pair.
    template <int PARITY>
    __device__ void refill(int fill, int tile) {
        constexpr bool PAIR = C::STAGE_TILES == 2;
        if (tile >= 0) {
            const int num_rows = seqlen_k - tile * C::BLOCK_N;  // fewer than BLOCK_N only in the last tile
            if constexpr (PAIR || PARITY == 0) k.copy_next(s_tiles[C::STAGE_TILES * fill], num_rows, head_dim);
            if constexpr (PAIR || PARITY == 1) v.copy_next(s_tiles[C::STAGE_TILES * fill + PAIR], num_rows, head_dim);
        }
        ptx::cp_async_commit();
    }

    // Wait for the current stage, which holds a tile of K (PARITY 0) or V (1), and refill the one before it.
    template <int PARITY>
    __device__ void wait(int tile) {
        ptx::cp_async_wait<C::STAGES - 2>();
        // The copies of this stage by all threads have landed, and no warp reads the previous stage any more: otherwise
        // products see half a tile, or tiles are overwritten while they are read.
        __syncthreads();
        constexpr int AHEAD = C::STAGES - 1 + (C::STAGE_TILES == 1 ? PARITY : 0);  // in stages, from this tile's first
        refill<AHEAD % 2>(stage == 0 ? C::STAGES - 1 : stage - 1, tile - AHEAD * C::STAGE_TILES / 2);
    }
    __device__ void release() { stage = stage + 1 == C::STAGES ? 0 : stage + 1; }

    __device__ typename C::KvTile& k_tile() { return s_tiles[C::STAGE_TILES * stage]; }
    __device__ typename C::KvTile& v_tile() { return s_tiles[C::STAGE_TILES * stage + C::STAGE_TILES - 1]; }
};

// Start the copies of all stages but the last.
template <class C, int STAGE = 0>
__device__ inline void fill_ring(Ring<C>& ring, int last_tile) {
    if constexpr (STAGE < C::STAGES - 1) {
        ring.template refill<STAGE % 2>(STAGE, last_tile - STAGE * C::STAGE_TILES / 2);
        fill_ring<C, STAGE + 1>(ring, last_tile);
    }
}

template <class C>
__global__ void __launch_bounds__(THREADS, 2) attention_cp_async_kernel(
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

    // Row m sees the keys before m + diagonal; with a causal mask the last query sees the last key.
    const int diagonal = causal ? seqlen_k - seqlen_q + 1 : seqlen_k;
    const int num_keys = min(seqlen_k, m_start + C::BLOCK_M - 1 + diagonal);  // beyond it nothing is visible here
    const int last_tile = num_keys > 0 ? (num_keys - 1) / C::BLOCK_N : -1;

    TileCopier<C, typename C::QTile, C::BLOCK_M>(g_q + batch * q_batch + head * q_head + m_start * q_row, q_row)
        .copy_next(smem.q, seqlen_q - m_start, head_dim);
    const long long last_row = (long long)last_tile * C::BLOCK_N;
    Ring<C> ring{smem.ring, {g_k + batch * k_batch + head_k * k_head + last_row * k_row, k_row},
                 {g_v + batch * v_batch + head_k * v_head + last_row * v_row, v_row}, seqlen_k, head_dim};
    fill_ring(ring, last_tile);

    uint32_t r_q[C::Q_STEPS][C::M_TILES][4];
    if constexpr (C::Q_IN_REGISTERS) {
        ptx::cp_async_wait<C::STAGES - 2>();
        __syncthreads();  // Q, copied by all threads, is complete
        #pragma unroll
        for (int kk = 0; kk < C::Q_STEPS; ++kk) load_q<C>(r_q[kk], smem.q, kk);
    }

    // From the last tile to the first: those that need a mask come first.
    WarpState<C> r;
    auto consume = [&](int tile, bool masked) {
        ring.template wait<0>(tile);
        float r_scores[C::M_TILES][C::N_TILES][4] = {};
        #pragma unroll C::UNROLL
        for (int kk = 0; kk < C::HEAD_DIM / 16; ++kk) {
            if constexpr (!C::Q_IN_REGISTERS) load_q<C>(r_q[0], smem.q, kk);
            multiply_qk<C>(r_scores, r_q[C::Q_IN_REGISTERS ? kk : 0], ring.k_tile(), kk);
        }
        if constexpr (C::STAGE_TILES == 1) ring.release();
        if (masked) mask_scores<C>(r_scores, warp_start + diagonal - tile * C::BLOCK_N, seqlen_k - tile * C::BLOCK_N);
        raise_max<C>(r, r_scores, softmax_scale_log2);
        if constexpr (C::STAGE_TILES == 1) ring.template wait<1>(tile);
        #pragma unroll
        for (int kk = 0; kk < C::BLOCK_N / 16; ++kk) {
            exponentiate<C>(r, r_scores, softmax_scale_log2, kk);
            multiply_pv<C>(r, r_scores, ring.v_tile(), kk);
        }
        ring.release();
    };
    const int num_full = max(0, min(seqlen_k, m_start + diagonal)) / C::BLOCK_N;  // tiles of which every row sees all
    int tile = last_tile;
    if constexpr (C::PEELED) {
        #pragma unroll 1
        for (; tile >= num_full; --tile) consume(tile, true);
    }
    #pragma unroll 1
    for (; tile >= 0; --tile) consume(tile, !C::PEELED && tile >= num_full);
    if (g_lse) g_lse += (long long)(batch * num_heads + head) * seqlen_q + m_start;
    ptx::cp_async_wait<0>();
    __syncthreads();  // Q is complete, also where there are no keys: otherwise its copies overwrite the outputs
    store_rows<C>(r, smem.q, g_out + batch * out_batch + head * out_head + m_start * out_row, out_row, g_lse,
                  seqlen_q - m_start, head_dim, softmax_scale_log2);
}
