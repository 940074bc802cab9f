// Generated from nbs/30_roles.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Step 30, roles: four warps multiply, four take the softmax, four keep the output.
// The division of labour of Blackwell's kernels, on chips whose accumulators are registers: what one role computes and
// another needs goes through shared memory: four boxes of one or two slots, and for each slot two named barriers, full and empty.
#include "common/mma_tile.cuh"
#include "common/ptx/barrier.h"

enum class Role { CORRECTION, MULTIPLY, SOFTMAX };  // THREADS threads each
constexpr int BLOCK_THREADS = 3 * THREADS, PAIR = 2 * THREADS;  // PAIR: the two roles at a box
// A box with two slots has two barriers of each kind. 0 is __syncthreads.
enum Barrier { SCORES_FULL = 1, SCORES_EMPTY = 3, WEIGHTS_FULL = 5, WEIGHTS_EMPTY = 6, RESCALE_FULL = 7, RESCALE_EMPTY = 8,
               PRODUCT_FULL = 9, PRODUCT_EMPTY = 11, MULTIPLIERS = 13 };
enum class Timed { NO, YES };

template <class Element, int BLOCK_N, int HEAD_DIM, Timed TIMED_ = Timed::NO,
          int MIN_BLOCKS_ = HEAD_DIM <= 128 ? 2 : 1>  // 80 registers a thread do not hold more outputs
struct Config : MmaConfig<Element, 64, BLOCK_N, HEAD_DIM, Layout::SWIZZLED> {
    static constexpr Timed TIMED = TIMED_;
    static constexpr int MIN_BLOCKS = MIN_BLOCKS_;                  // on an SM
    static constexpr int PRODUCT_COLUMNS = HEAD_DIM <= 96 ? 32 : 16;  // of P V, in one slot
    static constexpr int SCORE_SLOTS = HEAD_DIM <= 128 ? 2 : 1;     // what 99 KiB have room for
    using WeightTile = SharedTile<Element, 64, BLOCK_N, Layout::SWIZZLED>;
};

// Rows of float32, 8 columns longer than needed: then the quads of half a warp, which store pairs, touch every bank once.
template <int COLUMNS>
struct FloatTile {
    float elements[64][COLUMNS + 8];
};

template <class C>
struct SharedStorage {
    typename C::QTile q;  // a warp's rows later hold its outputs
    typename C::KvTile k, v;
    FloatTile<C::BLOCK_N> scores[C::SCORE_SLOTS];     // multiply -> softmax
    typename C::WeightTile weights;                   // softmax -> multiply
    FloatTile<C::PRODUCT_COLUMNS> products[2];        // multiply -> correction
    float rescale[64], row_max[64];                   // softmax -> correction; at the end sums and maxima
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

// Waiting and reporting at boxes, for one role of a pair.
template <class C>
struct Handoff {
    long long waited = 0;  // cycles, if TIMED

    // Before a box is read: it is full. Before it is written: it is empty.
    __device__ void wait(int barrier) {
        const long long start = C::TIMED == Timed::YES ? clock64() : 0;
        ptx::bar_sync(barrier, PAIR);
        if constexpr (C::TIMED == Timed::YES) {
            // The hardware lets a warp pass a barrier until it needs something: the clock would be read too early. A
            // store that depends on a load cannot be passed. Each thread has a word to itself in the padding of a tile.
            auto& s_tile = reinterpret_cast<SharedStorage<C>*>(smem_raw)->scores[0];
            volatile float& s_word = s_tile.elements[threadIdx.x / 8][C::BLOCK_N + threadIdx.x % 8];
            s_word = 0.f;
            const float word = s_word;
            if (word != 0.f) s_word = word;
            waited += clock64() - start;
        }
    }
    // This thread has written its part of a box, or read it.
    __device__ void report(int barrier) { ptx::bar_arrive(barrier, PAIR); }
};

// A warp of a role has 16 rows; a lane's pair in row `h` (0 or 1) of a float32 tile starts here.
__device__ inline int first_row() { return threadIdx.x % THREADS / 32 * 16 + threadIdx.x % 32 / 4; }
__device__ inline int first_column() { return threadIdx.x % 4 * 2; }

// Result tiles of the tensor cores to shared memory, and back into the same registers of another role's lanes.
template <int N_TILES, class Tile>
__device__ inline void store_result(Tile& s_tile, const float (&r)[N_TILES][4]) {
    #pragma unroll
    for (int n = 0; n < N_TILES; ++n)
        #pragma unroll
        for (int h = 0; h < 2; ++h)
            *reinterpret_cast<float2*>(&s_tile.elements[first_row() + 8 * h][8 * n + first_column()]) =
                make_float2(r[n][2 * h], r[n][2 * h + 1]);
}

template <int N_TILES, class Tile>
__device__ inline void load_result(float (&r)[N_TILES][4], const Tile& s_tile) {
    #pragma unroll
    for (int n = 0; n < N_TILES; ++n)
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float2 pair = *reinterpret_cast<const float2*>(&s_tile.elements[first_row() + 8 * h][8 * n + first_column()]);
            r[n][2 * h] = pair.x, r[n][2 * h + 1] = pair.y;
        }
}

// Copy a tile, as in step 22, by the threads of one role.
template <int ROWS, class Tile, class Element>
__device__ inline void load_tile(Tile& s_tile, const Element* g_rows, long long row_stride, int num_rows, int head_dim) {
    #pragma unroll 4
    for (int i = threadIdx.x % THREADS; i < ROWS * Tile::CHUNKS; i += THREADS) {
        const int row = i / Tile::CHUNKS, chunk = i % Tile::CHUNKS;
        uint4 elements = make_uint4(0, 0, 0, 0);
        if (row < num_rows && chunk * CHUNK < head_dim)
            elements = *reinterpret_cast<const uint4*>(&g_rows[row * row_stride + chunk * CHUNK]);
        *reinterpret_cast<uint4*>(s_tile.elements + Tile::offset(row, chunk)) = elements;
    }
}

// Step kk of a left operand: the warp's 16 rows of a tile.
template <class Tile>
__device__ inline void load_left(uint32_t (&r_left)[4], const Tile& s_tile, int kk) {
    const int offset = Tile::offset(threadIdx.x % 16, threadIdx.x % 32 / 16);
    ptx::ldmatrix_x4(r_left, s_tile.elements + threadIdx.x % THREADS / 32 * 16 * Tile::STRIDE + Tile::moved(offset, 0, 2 * kk));
}

// S = Q K^T for one tile of keys, into a slot of the box.
template <class C>
__device__ inline void multiply_scores(SharedStorage<C>& smem, Handoff<C>& handoff, int tile) {
    float r_scores[1][C::N_TILES][4] = {};
    #pragma unroll
    for (int kk = 0; kk < C::HEAD_DIM / 16; ++kk) {
        uint32_t r_q[1][4];
        load_left(r_q[0], smem.q, kk);
        multiply_qk<C>(r_scores, r_q, smem.k, kk);
    }
    const int slot = tile % C::SCORE_SLOTS;
    if (tile >= C::SCORE_SLOTS) handoff.wait(SCORES_EMPTY + slot);  // the softmax has read the scores that were here
    store_result(smem.scores[slot], r_scores[0]);
    handoff.report(SCORES_FULL + slot);
}

// P V for one tile of keys, PRODUCT_COLUMNS at a time. `part` counts the slots filled so far.
template <class C>
__device__ inline void multiply_products(SharedStorage<C>& smem, Handoff<C>& handoff, int& part, bool last) {
    constexpr int STEPS = C::BLOCK_N / 16, TILES = C::PRODUCT_COLUMNS / 8;
    handoff.wait(WEIGHTS_FULL);  // the softmax has written all of P
    uint32_t r_p[STEPS][4];
    #pragma unroll
    for (int kk = 0; kk < STEPS; ++kk) load_left(r_p[kk], smem.weights, kk);
    if (!last) handoff.report(WEIGHTS_EMPTY);  // P is in registers

    const int lane = threadIdx.x % 32, offset = C::KvTile::offset(lane % 16, lane / 16);
    #pragma unroll
    for (int d = 0; d < C::D_TILES; d += TILES, ++part) {
        float r_product[TILES][4] = {};
        #pragma unroll
        for (int kk = 0; kk < STEPS; ++kk)
            #pragma unroll
            for (int i = 0; i < TILES; i += 2) {
                uint32_t r_v[4];
                ptx::ldmatrix_x4_trans(r_v, smem.v.elements + C::KvTile::moved(offset, 16 * kk, d + i));
                const uint32_t r_left[2] = {r_v[0], r_v[1]}, r_right[2] = {r_v[2], r_v[3]};
                ptx::mma_m16n8k16<typename C::Element>(r_product[i], r_p[kk], r_left);
                ptx::mma_m16n8k16<typename C::Element>(r_product[i + 1], r_p[kk], r_right);
            }
        if (part >= 2) handoff.wait(PRODUCT_EMPTY + part % 2);  // the correction has added what was here
        store_result(smem.products[part % 2], r_product);
        handoff.report(PRODUCT_FULL + part % 2);
    }
}

// Warps 4 to 7: copies and products. The scores of the next tile come before the products of this one, so that the
// softmax has something to do while these run.
template <class C>
__device__ inline void multiply(SharedStorage<C>& smem, Handoff<C>& handoff, const typename C::Element* g_k, long long k_row,
                                const typename C::Element* g_v, long long v_row, int num_tiles, int seqlen_k, int head_dim) {
    int part = 0;
    for (int tile = 0; tile <= num_tiles; ++tile) {
        const int n_start = tile * C::BLOCK_N, v_start = n_start - C::BLOCK_N;
        ptx::bar_sync(MULTIPLIERS, THREADS);  // all four warps are done with K and V of the tiles before
        if (tile < num_tiles) load_tile<C::BLOCK_N>(smem.k, g_k + n_start * k_row, k_row, seqlen_k - n_start, head_dim);
        if (tile > 0) load_tile<C::BLOCK_N>(smem.v, g_v + v_start * v_row, v_row, seqlen_k - v_start, head_dim);
        ptx::bar_sync(MULTIPLIERS, THREADS);  // K, V and before the first tile Q are written
        if (tile < num_tiles) multiply_scores<C>(smem, handoff, tile);
        if (tile > 0) multiply_products<C>(smem, handoff, part, tile == num_tiles);
    }
}

// Weights, rounded in pairs, to where ldmatrix finds them.
template <class C>
__device__ inline void store_weights(typename C::WeightTile& s_weights, const float (&r_weights)[C::N_TILES][4]) {
    using Tile = typename C::WeightTile;
    #pragma unroll
    for (int n = 0; n < C::N_TILES; ++n)
        #pragma unroll
        for (int h = 0; h < 2; ++h)
            *reinterpret_cast<uint32_t*>(s_weights.elements + Tile::offset(first_row() + 8 * h, n) + first_column()) =
                ptx::pack<typename C::Element>(r_weights[n][2 * h], r_weights[n][2 * h + 1]);
}

// Warps 8 to 11: scores to weights, and what the correction must know: by how much to rescale, and in the end the sums.
template <class C>
__device__ inline void softmax(SharedStorage<C>& smem, Handoff<C>& handoff, int num_tiles, int first_visible, int seqlen_k,
                               float scale_log2) {
    WarpState<C> r;  // maxima and sums; nothing is kept in its outputs
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int n_start = tile * C::BLOCK_N, slot = tile % C::SCORE_SLOTS, visible = first_visible - n_start;
        float r_scores[1][C::N_TILES][4];
        handoff.wait(SCORES_FULL + slot);
        load_result(r_scores[0], smem.scores[slot]);
        if (tile + C::SCORE_SLOTS < num_tiles) handoff.report(SCORES_EMPTY + slot);

        if (min(visible, seqlen_k - n_start) < C::BLOCK_N) mask_scores<C>(r_scores, visible, seqlen_k - n_start);
        const float before[2] = {r.row_max[0][0], r.row_max[0][1]};
        raise_max<C>(r, r_scores, scale_log2);
        #pragma unroll
        for (int kk = 0; kk < C::BLOCK_N / 16; ++kk) exponentiate<C>(r, r_scores, scale_log2, kk);

        if (tile > 0) handoff.wait(RESCALE_EMPTY);  // the correction has read the factors of the tile before
        #pragma unroll
        for (int h = 0; h < 2; ++h)  // the first key of a row: 2^-infinity = 0
            if (threadIdx.x % 4 == 0)
                smem.rescale[first_row() + 8 * h] =
                    before[h] == r.row_max[0][h] ? 1.0f : ptx::ex2((before[h] - r.row_max[0][h]) * scale_log2);
        handoff.report(RESCALE_FULL);
        if (tile > 0) handoff.wait(WEIGHTS_EMPTY);  // the weights of the tile before are in the multipliers' registers
        store_weights<C>(smem.weights, r_scores[0]);
        handoff.report(WEIGHTS_FULL);
    }
    if (num_tiles > 0) handoff.wait(RESCALE_EMPTY);
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float sum = row_reduce_sum(r.row_sum[0][h]);
        if (threadIdx.x % 4 == 0) smem.rescale[first_row() + 8 * h] = sum, smem.row_max[first_row() + 8 * h] = r.row_max[0][h];
    }
    handoff.report(RESCALE_FULL);
}

// Warps 0 to 3: the output, O = rescale * O + P V, in registers.
template <class C>
__device__ inline void correct(WarpState<C>& r, SharedStorage<C>& smem, Handoff<C>& handoff, int num_tiles) {
    constexpr int TILES = C::PRODUCT_COLUMNS / 8;
    int part = 0;
    for (int tile = 0; tile < num_tiles; ++tile) {
        handoff.wait(RESCALE_FULL);
        const float rescale[2] = {smem.rescale[first_row()], smem.rescale[first_row() + 8]};
        handoff.report(RESCALE_EMPTY);
        #pragma unroll
        for (int d = 0; d < C::D_TILES; d += TILES, ++part) {
            float r_product[TILES][4];
            handoff.wait(PRODUCT_FULL + part % 2);
            load_result(r_product, smem.products[part % 2]);
            if (part + 2 < num_tiles * (C::D_TILES / TILES)) handoff.report(PRODUCT_EMPTY + part % 2);
            #pragma unroll
            for (int i = 0; i < TILES; ++i)
                #pragma unroll
                for (int e = 0; e < 4; ++e) r.out[0][d + i][e] = r.out[0][d + i][e] * rescale[e / 2] + r_product[i][e];
        }
    }
    handoff.wait(RESCALE_FULL);  // the sums and maxima
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        r.row_sum[0][h] = threadIdx.x % 4 == 0 ? smem.rescale[first_row() + 8 * h] : 0.0f;  // store_rows adds up the quad
        r.row_max[0][h] = smem.row_max[first_row() + 8 * h];
    }
}

template <class C>
__global__ void __launch_bounds__(BLOCK_THREADS, C::MIN_BLOCKS) attention_roles_kernel(
    const typename C::Element* g_q, const typename C::Element* g_k, const typename C::Element* g_v,
    typename C::Element* g_out,  // [batch, num_heads, seqlen_q, head_dim]; the last dimension of all four is contiguous
    float* g_lse,                // [batch, num_heads, seqlen_q], natural log, contiguous; or null
    long long q_batch, long long q_head, long long q_row, long long k_batch, long long k_head, long long k_row,
    long long v_batch, long long v_head, long long v_row,
    long long out_batch, long long out_head, long long out_row,  // strides, in elements
    int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int head_dim, int causal, float softmax_scale_log2,
    long long* g_cycles) {  // [blocks, 3 roles, 2]: cycles a role waited, and all of its cycles; if TIMED
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const int m_start = (gridDim.x - 1 - blockIdx.x) * C::BLOCK_M;  // longest causal rows first
    const int head = blockIdx.y, head_k = head / (num_heads / num_heads_k), batch = blockIdx.z;
    const int role = threadIdx.x / THREADS;

    // Row m sees the keys before m + diagonal; with a causal mask the last query sees the last key.
    const int diagonal = causal ? seqlen_k - seqlen_q + 1 : seqlen_k;
    const int num_keys = min(seqlen_k, m_start + C::BLOCK_M - 1 + diagonal);  // beyond it nothing is visible here
    const int num_tiles = num_keys > 0 ? (num_keys + C::BLOCK_N - 1) / C::BLOCK_N : 0;

    Handoff<C> handoff;
    const long long start = C::TIMED == Timed::YES ? clock64() : 0;
    // Without a tile of keys the multipliers have nothing to do. They must not even copy Q then: nothing would order them
    // before the correction, which writes its zeros to the same place.
    if (role == int(Role::MULTIPLY) && num_tiles > 0) {
        load_tile<C::BLOCK_M>(smem.q, g_q + batch * q_batch + head * q_head + m_start * q_row, q_row, seqlen_q - m_start, head_dim);
        multiply<C>(smem, handoff, g_k + batch * k_batch + head_k * k_head, k_row, g_v + batch * v_batch + head_k * v_head, v_row,
                    num_tiles, seqlen_k, head_dim);
    } else if (role == int(Role::SOFTMAX)) {
        const int first_visible = m_start + threadIdx.x % THREADS / 32 * 16 + diagonal;
        softmax<C>(smem, handoff, num_tiles, first_visible, seqlen_k, softmax_scale_log2);
    } else if (role == int(Role::CORRECTION)) {
        WarpState<C> r;
        correct<C>(r, smem, handoff, num_tiles);
        if (g_lse) g_lse += (long long)(batch * num_heads + head) * seqlen_q + m_start;
        store_rows<C>(r, smem.q, g_out + batch * out_batch + head * out_head + m_start * out_row, out_row, g_lse,
                      seqlen_q - m_start, head_dim, softmax_scale_log2);
    }
    if constexpr (C::TIMED == Timed::YES)
        if (threadIdx.x % THREADS == 0) {
            const long long block = blockIdx.x + (long long)gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
            g_cycles[2 * (3 * block + role)] = handoff.waited;
            g_cycles[2 * (3 * block + role) + 1] = clock64() - start;
        }
}
