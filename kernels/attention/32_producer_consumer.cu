// Generated from nbs/32_producer_consumer.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Step 32, producers and consumers: some warps copy, the others multiply.
// A block has 8 warps. Warps 4 to 7 bring tiles of K and V into a ring in shared memory; warps 0 to 3 do step 22's
// products and softmax on them. Two named barriers for each stage say when it is full and when it is empty.
#include "common/mma_tile.cuh"
#include "common/ptx/barrier.h"
#include "common/ptx/cp_async.h"
#if defined(FLASHMOE_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#include "common/ptx/register.h"
#define HAS_SETMAXNREG 1
#endif

constexpr int BLOCK_THREADS = 2 * THREADS;          // THREADS consumers, and as many producers
enum Barrier { FULL = 1, EMPTY = 5, Q_READY = 9 };  // FULL + stage, EMPTY + stage; 0 is __syncthreads
enum class Copy { REGISTERS, ASYNC };               // ASYNC: by cp.async, which step 40 explains

// What a thread has. DIVIDED: 128 to start with, of which producers give most to consumers. HALVED: 128. WHOLE: up to
// 255, so that only one block fits on an SM.
enum class Registers { DIVIDED, HALVED, WHOLE };
#ifdef HAS_SETMAXNREG
constexpr Registers BEST_REGISTERS = Registers::DIVIDED;
#else
constexpr Registers BEST_REGISTERS = Registers::WHOLE;
#endif

template <class Element, int BLOCK_M, int BLOCK_N, int HEAD_DIM, int STAGES_ = 2, Copy COPY_ = Copy::REGISTERS,
          Registers REGISTERS_ = BEST_REGISTERS>
struct Config : MmaConfig<Element, BLOCK_M, BLOCK_N, HEAD_DIM, Layout::SWIZZLED> {
    static constexpr int STAGES = STAGES_;
    static constexpr Copy COPY = COPY_;
    static constexpr Registers REGISTERS = REGISTERS_;
    static constexpr int MIN_BLOCKS = REGISTERS == Registers::WHOLE ? 1 : 2;  // on an SM
    static constexpr int PRODUCER_REGISTERS = HEAD_DIM <= 192 ? 64 : 48, CONSUMER_REGISTERS = HEAD_DIM <= 192 ? 192 : 208;
    static constexpr int BATCH = HEAD_DIM <= 192 ? 4 : 2;  // chunks of K, and of V, that a producer has under way
    static_assert(2 <= STAGES && STAGES <= 4, "four barriers of each kind");
    static_assert(PRODUCER_REGISTERS + CONSUMER_REGISTERS <= 256, "2 blocks of 256 threads share 65,536 registers");
};

template <class C>
struct SharedStorage {
    typename C::QTile q;  // a warp's rows later hold its outputs
    typename C::KvTile k[C::STAGES], v[C::STAGES];
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

// One chunk from global to shared memory, or zeros where it lies outside of the matrix.
template <Copy COPY, class Element>
__device__ __forceinline__ void copy_chunk(Element* s_target, const Element* g_source, bool inside) {
    if constexpr (COPY == Copy::ASYNC)
        ptx::cp_async_16(s_target, g_source, inside);
    else
        *reinterpret_cast<uint4*>(s_target) = inside ? *reinterpret_cast<const uint4*>(g_source) : make_uint4(0, 0, 0, 0);
}

// This thread's chunks of a tile of Q, as in step 22; zeros beyond num_rows and head_dim.
template <class C>
__device__ inline void load_q_tile(typename C::QTile& s_q, const typename C::Element* g_q, long long q_row, int num_rows,
                                   int head_dim) {
    using Tile = typename C::QTile;
    #pragma unroll 4
    for (int i = threadIdx.x; i < C::BLOCK_M * Tile::CHUNKS; i += THREADS) {
        const int row = i / Tile::CHUNKS, chunk = i % Tile::CHUNKS;
        copy_chunk<Copy::REGISTERS>(s_q.elements + Tile::offset(row, chunk), g_q + row * q_row + chunk * CHUNK,
                                    row < num_rows && chunk * CHUNK < head_dim);
    }
}

// This thread's chunks of a tile of K and of V; BATCH of each are under way at a time.
template <class C>
__device__ inline void load_kv(typename C::KvTile& s_k, typename C::KvTile& s_v, const typename C::Element* g_k,
                               const typename C::Element* g_v, long long k_row, long long v_row, int num_rows, int head_dim) {
    using Tile = typename C::KvTile;
    #pragma unroll C::BATCH
    for (int i = threadIdx.x % THREADS; i < C::BLOCK_N * Tile::CHUNKS; i += THREADS) {
        const int row = i / Tile::CHUNKS, chunk = i % Tile::CHUNKS, target = Tile::offset(row, chunk);
        const bool inside = row < num_rows && chunk * CHUNK < head_dim;
        copy_chunk<C::COPY>(s_k.elements + target, g_k + row * k_row + chunk * CHUNK, inside);
        copy_chunk<C::COPY>(s_v.elements + target, g_v + row * v_row + chunk * CHUNK, inside);
    }
}

// Warps 4 to 7: fill stage after stage.
template <class C>
__device__ inline void produce(SharedStorage<C>& smem, const typename C::Element* g_k, long long k_row,
                               const typename C::Element* g_v, long long v_row, int num_tiles, int seqlen_k, int head_dim) {
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int stage = tile % C::STAGES, n_start = tile * C::BLOCK_N;
        // The consumers have released this stage; otherwise live K and V are overwritten. First lap: it starts empty.
        if (tile >= C::STAGES) ptx::bar_sync(EMPTY + stage, BLOCK_THREADS);
        load_kv<C>(smem.k[stage], smem.v[stage], g_k + n_start * k_row, g_v + n_start * v_row, k_row, v_row,
                   seqlen_k - n_start, head_dim);
        if constexpr (C::COPY == Copy::REGISTERS) {
            ptx::bar_arrive(FULL + stage, BLOCK_THREADS);  // this thread's part of the stage is written
        } else {
            ptx::cp_async_commit();
            ptx::cp_async_wait<1>();  // the tile before this one has landed
            if (tile > 0) ptx::bar_arrive(FULL + (tile - 1) % C::STAGES, BLOCK_THREADS);
        }
    }
    if constexpr (C::COPY == Copy::ASYNC) {
        ptx::cp_async_wait<0>();
        if (num_tiles > 0) ptx::bar_arrive(FULL + (num_tiles - 1) % C::STAGES, BLOCK_THREADS);
    }
}

// Warps 0 to 3: multiply stage after stage.
template <class C>
__device__ inline void consume(WarpState<C>& r, SharedStorage<C>& smem, int num_tiles, int first_visible, int seqlen_k,
                               float softmax_scale_log2) {
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int stage = tile % C::STAGES, n_start = tile * C::BLOCK_N;
        ptx::bar_sync(FULL + stage, BLOCK_THREADS);  // the producers have written all of this stage
        float r_scores[C::M_TILES][C::N_TILES][4] = {};
        #pragma unroll
        for (int kk = 0; kk < C::HEAD_DIM / 16; ++kk) {
            uint32_t r_q[C::M_TILES][4];
            load_q<C>(r_q, smem.q, kk);
            multiply_qk<C>(r_scores, r_q, smem.k[stage], kk);
        }
        const int visible = first_visible - n_start;  // keys of this tile that the warp's first row sees
        if (min(visible, seqlen_k - n_start) < C::BLOCK_N) mask_scores<C>(r_scores, visible, seqlen_k - n_start);
        raise_max<C>(r, r_scores, softmax_scale_log2);
        #pragma unroll
        for (int kk = 0; kk < C::BLOCK_N / 16; ++kk) {
            exponentiate<C>(r, r_scores, softmax_scale_log2, kk);
            multiply_pv<C>(r, r_scores, smem.v[stage], kk);
        }
        // Release the stage, unless nobody will wait for it: a barrier must not be left half full.
        if (tile + C::STAGES < num_tiles) ptx::bar_arrive(EMPTY + stage, BLOCK_THREADS);
    }
}

template <class C>
__global__ void __launch_bounds__(BLOCK_THREADS, C::MIN_BLOCKS) attention_producer_consumer_kernel(
    const typename C::Element* g_q, const typename C::Element* g_k, const typename C::Element* g_v,
    typename C::Element* g_out,  // [batch, num_heads, seqlen_q, head_dim]; the last dimension of all four is contiguous
    float* g_lse,                // [batch, num_heads, seqlen_q], natural log, contiguous; or null
    long long q_batch, long long q_head, long long q_row, long long k_batch, long long k_head, long long k_row,
    long long v_batch, long long v_head, long long v_row,
    long long out_batch, long long out_head, long long out_row,  // strides, in elements
    int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int head_dim, int causal, float softmax_scale_log2) {
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const int m_start = (gridDim.x - 1 - blockIdx.x) * C::BLOCK_M;  // longest causal rows first
    const int head = blockIdx.y, head_k = head / (num_heads / num_heads_k), batch = blockIdx.z;

    // Row m sees the keys before m + diagonal; with a causal mask the last query sees the last key.
    const int diagonal = causal ? seqlen_k - seqlen_q + 1 : seqlen_k;
    const int num_keys = min(seqlen_k, m_start + C::BLOCK_M - 1 + diagonal);  // beyond it nothing is visible here
    const int num_tiles = num_keys > 0 ? (num_keys + C::BLOCK_N - 1) / C::BLOCK_N : 0;

    if (threadIdx.x >= THREADS) {
#ifdef HAS_SETMAXNREG
        if constexpr (C::REGISTERS == Registers::DIVIDED) ptx::reg_dealloc<C::PRODUCER_REGISTERS>();
#endif
        produce<C>(smem, g_k + batch * k_batch + head_k * k_head, k_row, g_v + batch * v_batch + head_k * v_head, v_row,
                   num_tiles, seqlen_k, head_dim);
    } else {
#ifdef HAS_SETMAXNREG
        if constexpr (C::REGISTERS == Registers::DIVIDED) ptx::reg_alloc<C::CONSUMER_REGISTERS>();
#endif
        load_q_tile<C>(smem.q, g_q + batch * q_batch + head * q_head + m_start * q_row, q_row, seqlen_q - m_start, head_dim);
        ptx::bar_sync(Q_READY, THREADS);  // all consumers' parts of Q are written; producers have no part in it
        WarpState<C> r;
        consume<C>(r, smem, num_tiles, m_start + threadIdx.x / 32 * C::WARP_ROWS + diagonal, seqlen_k, softmax_scale_log2);
        if (g_lse) g_lse += (long long)(batch * num_heads + head) * seqlen_q + m_start;
        __syncwarp();  // all lanes have read the warp's queries, whose place its outputs take
        store_rows<C>(r, smem.q, g_out + batch * out_batch + head * out_head + m_start * out_row, out_row, g_lse,
                      seqlen_q - m_start, head_dim, softmax_scale_log2);
    }
}
