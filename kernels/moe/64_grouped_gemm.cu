// Generated from nbs/64_grouped_gemm.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Grouped GEMM over ragged groups: out[slot] = f(weights[expert of the slot] . tokens[slot]), slots sorted by expert.
// Roles: a producer feeds a ring of stages; consumer warpgroups multiply 128 weight rows each with up to BLOCK_TOKENS
// tokens. Weights are WGMMA's M, tokens its N: a group's last tile is as narrow as its tokens, to a multiple of 8 or 16.
// GATE_UP: tokens gathered through permuted_idx, gate and up rows interleaved by 8 in shared memory, SwiGLU in the
// epilogue. Persistent: tiles are claimed from a counter, n fastest, so that tiles running together share weights.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/barrier.h"
#include "common/ptx/basic.h"
#include "common/ptx/cluster.h"
#include "common/ptx/convert.h"
#include "common/ptx/cp_async.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/mbarrier.h"
#include "common/ptx/register.h"
#include "common/ptx/tma.h"
#include "common/ptx/wgmma.h"

// Where a tile's token rows lie: one after another (TMA), or anywhere, to be gathered (cp.async).
enum Rows { CONTIGUOUS, GATHERED };

template <class Element_, int CONSUMERS_, int BLOCK_TOKENS_, int STAGES_, bool GATE_UP_, Rows ROWS_, bool STREAM_ = false,
          int CLUSTER_ = 1>
struct Config {
    using Element = Element_;
    static constexpr int CONSUMERS = CONSUMERS_;        // warpgroups that multiply
    static constexpr int BLOCK_TOKENS = BLOCK_TOKENS_;  // tokens of a tile, at most
    static constexpr int STAGES = STAGES_;
    static constexpr bool GATE_UP = GATE_UP_;
    static constexpr Rows ROWS = ROWS_;
    static constexpr int BLOCK_K = 64;                     // 128 bytes, one swizzle span
    static constexpr int BLOCK_WEIGHTS = 128 * CONSUMERS;  // two m64 tiles a warpgroup
    static constexpr int FEATURES = GATE_UP ? 64 : 128;    // outputs of a token that a warpgroup computes
    // Widths that are compiled: multiples of 8 for the upper half, which spreading evenly makes the common ones.
    __device__ static constexpr int narrower(int width) { return width - (2 * width > BLOCK_TOKENS || width < 32 ? 8 : 16); }
    static constexpr int TOKEN_BOX = BLOCK_TOKENS % 32 == 0 ? 32 : BLOCK_TOKENS % 16 == 0 ? 16 : 8;
    static constexpr int GROUP = 16;              // token blocks that share a walk over the weights
    static constexpr bool LARGE = CONSUMERS > 1;
    // Tokens that are staged for the store together.
    static constexpr int OUT_TOKENS = LARGE ? 48 : BLOCK_TOKENS < 32 ? 16 : 32;
    static constexpr bool STREAM = STREAM_;
    static constexpr int CLUSTER = CLUSTER_;      // blocks that share their weights: each reads a part for all of them
    static constexpr int CONSUMER_REGISTERS = BLOCK_TOKENS > 160 ? 224 : 208;  // of 504 for three warpgroups
    static constexpr int PRODUCER_REGISTERS = 504 - 2 * CONSUMER_REGISTERS;
    static constexpr int TOKEN_WARPS = ROWS == GATHERED && LARGE ? 3 : 1;
    static constexpr int THREADS = 128 * CONSUMERS + (LARGE ? 128 : 64);
    static_assert(CLUSTER == 1 || CLUSTER == CONSUMERS, "a block of the cluster loads 128 weight rows");
    static_assert(BLOCK_TOKENS % 8 == 0 && BLOCK_TOKENS % TOKEN_BOX == 0 && BLOCK_TOKENS <= 256);
};

struct Tile {
    int expert;  // -1: there is no further tile
    int weight_block;
    int first_slot;
    int rows;
    int k_begin, k_end;
    int out_row;  // where the results of first_slot go; every split of k has rows of its own
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

template <class C>
struct SharedStorage {
    typename C::Element weights[C::STAGES][C::BLOCK_WEIGHTS * C::BLOCK_K];
    typename C::Element tokens[C::STAGES][C::BLOCK_TOKENS * C::BLOCK_K];
    uint4 out[C::CONSUMERS][2][C::OUT_TOKENS * 8];  // 64 features of some tokens, swizzled; two in turn
    uint64_t full_barrier[C::STAGES], empty_barrier[C::STAGES];
    uint64_t tile_full_barrier[2], tile_empty_barrier[2];
    uint64_t number_full_barrier[2], number_empty_barrier[2];  // a cluster's: the number of the next tile, from block 0
    int number[2];
    Tile tile[2];
    int block_offsets[513];
};

// A place in a ring and the parity of its current lap.
template <int SLOTS>
struct Cursor {
    int slot = 0, phase = 0;
    __device__ void advance() {
        if (++slot == SLOTS) slot = 0, phase ^= 1;
    }
};

struct Problem {
    const int* expert_offsets;  // [num_experts + 1]
    int num_experts;
    int weight_blocks;
    int k;
    int splits, k_split;  // k is cut into `splits` parts of `k_split`
    int num_slots;
    int* counter;  // tiles claimed beyond the first of each block
};

// ---- tiles ----

// Whole warp. The expert of tile number `tile`, searched from `expert` on; num_experts if there is none.
template <class C>
__device__ int find_expert(const SharedStorage<C>& s, const Problem& p, int tile, int expert) {
    const int lane_idx = threadIdx.x % 32, tiles_a_block = p.weight_blocks * p.splits;
    for (; expert < p.num_experts; expert += 32) {
        const int candidate = min(expert + lane_idx, p.num_experts - 1);
        const unsigned found = __ballot_sync(~0u, tile < s.block_offsets[candidate + 1] * tiles_a_block);
        if (found) return min(expert + __ffs(found) - 1, p.num_experts - 1);
    }
    return p.num_experts;
}

// Tiles of an expert: groups of token blocks; in a group all weight blocks; for each of them every token block.
template <class C>
__device__ Tile tile_of(const SharedStorage<C>& s, const Problem& p, int tile, int expert) {
    if (expert == p.num_experts) return {-1};
    const int first_block = s.block_offsets[expert], blocks = s.block_offsets[expert + 1] - first_block;
    const int parts = p.weight_blocks * p.splits;
    int at = tile - first_block * parts;
    const int group = at / (C::GROUP * parts), group_blocks = min(C::GROUP, blocks - group * C::GROUP);
    at -= group * C::GROUP * parts;
    const int part = at / group_blocks, token_block = group * C::GROUP + at % group_blocks;
    const int split = part % p.splits, k_begin = split * p.k_split;

    // An expert's tokens are spread over its blocks by eights: all get `each`, and the first ones one more.
    const int begin = p.expert_offsets[expert], count = p.expert_offsets[expert + 1] - begin;
    // Blocks of a cluster have neighbouring shares; the last may be left with none, and then still loads weights.
    const int all = blocks * C::CLUSTER, each = (count + 7) / 8 / all, more = (count + 7) / 8 % all;
    const int share = token_block * C::CLUSTER + (C::CLUSTER > 1 ? ptx::cluster_rank() : 0);
    const int start = (share * each + min(share, more)) * 8, size = (each + (share < more)) * 8;
    const int first = min(start, count - 1);
    return {expert, part / p.splits, begin + first, max(0, min(size, count - start)), k_begin,
            min(p.k, k_begin + p.k_split), split * p.num_slots + begin + first};
}

// Every warp but the one that finds tiles: the next tile.
template <class C>
__device__ const Tile& receive_tile(SharedStorage<C>& s, const Cursor<2>& handover) {
    ptx::mbar_wait(&s.tile_full_barrier[handover.slot], handover.phase);
    return s.tile[handover.slot];
}

// The warp has read the tile for the last time.
template <class C>
__device__ void release_tile(SharedStorage<C>& s, Cursor<2>& handover) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbar_arrive(&s.tile_empty_barrier[handover.slot]);
    handover.advance();
}

// ---- producers ----

// Few tokens: a weight is read once, and need not push anything else out of L2.
template <class C, int RANK>
__device__ void load_weights(void* s_tile, const CUtensorMap* map, uint64_t* barrier, const int (&at)[RANK]) {
    if constexpr (C::CLUSTER > 1) ptx::tma_load_multicast(s_tile, map, barrier, at, (1 << C::CLUSTER) - 1);
    else if constexpr (C::STREAM) ptx::tma_load(s_tile, map, barrier, at, ptx::l2_evict_first());
    else ptx::tma_load(s_tile, map, barrier, at);
}

// One lane, in a cluster of block 0: the number of a further tile. Nobody waits for the answer until it is used.
template <class C>
__device__ int claim(const Problem& p) {
    return gridDim.x / C::CLUSTER + atomicAdd(p.counter, 1);
}

// Whole warp. What lane 0 has claimed; in a cluster, what block 0 has claimed and sends to block 1.
template <class C>
__device__ int next_number(SharedStorage<C>& s, int claimed, Cursor<2>& mail) {
    int number = __shfl_sync(~0u, claimed, 0);
    if constexpr (C::CLUSTER > 1) {
        static_assert(C::CLUSTER == 2);
        const int lane_idx = threadIdx.x % 32, rank = ptx::cluster_rank();
        if (rank == 0 && lane_idx == 0) {
            // Wait until block 1 has read the number that was here; otherwise it would skip a tile.
            ptx::mbar_wait_cluster(&s.number_empty_barrier[mail.slot], mail.phase ^ 1);
            *ptx::cluster_map(&s.number[mail.slot], 1) = number;
            ptx::mbar_arrive_cluster(&s.number_full_barrier[mail.slot], 1);
        } else if (rank == 1) {
            ptx::mbar_wait_cluster(&s.number_full_barrier[mail.slot], mail.phase);
            number = s.number[mail.slot];
            __syncwarp();  // every lane has read it
            if (lane_idx == 0) ptx::mbar_arrive_cluster(&s.number_empty_barrier[mail.slot], 0);
        }
        mail.advance();
    }
    return number;
}

// One warp: claims tiles, hands them out and streams their weights, as far ahead as the ring is long.
template <class C>
__device__ void produce_weights(SharedStorage<C>& s, const Problem& p, const CUtensorMap* map) {
    const int lane_idx = threadIdx.x % 32, rank = C::CLUSTER > 1 ? ptx::cluster_rank() : 0;
    Cursor<C::STAGES> ring;
    Cursor<2> handover, mail;
    int expert = 0;
    for (int number = blockIdx.x / C::CLUSTER;; handover.advance()) {
        expert = find_expert(s, p, number, expert);
        const Tile tile = tile_of(s, p, number, expert);
        // Wait until every warp has read the tile that was here; otherwise some would skip it.
        ptx::mbar_wait(&s.tile_empty_barrier[handover.slot], handover.phase ^ 1);
        if (lane_idx == 0) {
            s.tile[handover.slot] = tile;
            ptx::mbar_arrive(&s.tile_full_barrier[handover.slot]);
        }
        if (tile.expert < 0) return;
        int claimed = 0;
        bool asked = false;
        for (int k = tile.k_begin; k < tile.k_end; k += C::BLOCK_K, ring.advance()) {
            if (lane_idx != 0) continue;
            uint64_t* barrier = &s.full_barrier[ring.slot];
            // Wait until every consumer warp, in all blocks of the cluster, has released this slot; otherwise copies
            // overwrite live operands.
            ptx::mbar_wait(&s.empty_barrier[ring.slot], ring.phase ^ 1);
            ptx::mbar_arrive_expect_tx(barrier, C::BLOCK_WEIGHTS * C::BLOCK_K * 2);
            const int row = tile.weight_block * C::BLOCK_WEIGHTS + rank * 128;
            void* s_weights = &s.weights[ring.slot][rank * 128 * C::BLOCK_K];
            if constexpr (C::GATE_UP)  // {k, row of 8, gate or up, group of 8 rows, expert}
                load_weights<C>(s_weights, map, barrier, {k, 0, 0, row / 16, tile.expert});
            else
                load_weights<C>(s_weights, map, barrier, {k, row, tile.expert});
            // The next tile is asked for two stages before the end: the answer takes that long.
            if (rank == 0 && k + 3 * C::BLOCK_K >= tile.k_end && !asked) claimed = claim<C>(p), asked = true;
        }
        number = next_number(s, claimed, mail);
    }
}

// One thread: rows in slot order, boxes of TOKEN_BOX. Rows beyond the tile belong to others; their results are dropped. A
// block whose neighbour in the cluster has all the rows loads one box, so that its consumers do not multiply noise.
template <class C>
__device__ void load_tokens(SharedStorage<C>& s, const CUtensorMap* map, const Tile& tile, Cursor<C::STAGES>& ring) {
    const int boxes = max(1, (tile.rows + C::TOKEN_BOX - 1) / C::TOKEN_BOX);
    for (int k = tile.k_begin; k < tile.k_end; k += C::BLOCK_K, ring.advance()) {
        uint64_t* barrier = &s.full_barrier[ring.slot];
        ptx::mbar_wait(&s.empty_barrier[ring.slot], ring.phase ^ 1);
        ptx::mbar_arrive_expect_tx(barrier, boxes * C::TOKEN_BOX * C::BLOCK_K * 2);
        for (int box = 0; box < boxes; ++box)
            ptx::tma_load(&s.tokens[ring.slot][box * C::TOKEN_BOX * C::BLOCK_K], map, barrier,
                          {k, tile.first_slot + box * C::TOKEN_BOX});
    }
}

// TOKEN_WARPS warps: eight lanes a row, 16 bytes a lane, into the places where 128-byte swizzling wants them. Rows
// beyond the tile repeat its last one; their results are dropped.
template <class C>
__device__ void gather_tokens(SharedStorage<C>& s, const typename C::Element* tokens, const int* permuted_idx,
                              int top_k, int k_stride, const Tile& tile, Cursor<C::STAGES>& ring) {
    constexpr int ROW_STEP = 4 * C::TOKEN_WARPS, ROWS = (C::BLOCK_TOKENS + ROW_STEP - 1) / ROW_STEP;
    static_assert(ROW_STEP % 8 == 4, "every other row of a thread has bit 2 of its number flipped");
    const int thread = threadIdx.x - 128 * C::CONSUMERS - 32, chunk = thread % 8, first_row = thread / 8;
    const int padded = min((max(1, tile.rows) + 15) / 16 * 16, C::BLOCK_TOKENS);
    const int first_slot = tile.rows > 0 ? tile.first_slot : 0;  // a block without rows of its own takes any
    const int rows = (padded - first_row + ROW_STEP - 1) / ROW_STEP;
    int source[ROWS];  // in units of 16 bytes
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = max(0, min(first_row + i * ROW_STEP, tile.rows - 1));
        source[i] = permuted_idx[first_slot + row] / top_k * (k_stride / 8) + chunk;
    }
    const int s_even = first_row * C::BLOCK_K + (chunk ^ first_row % 8) * 8;
    const int s_odd = first_row * C::BLOCK_K + (chunk ^ first_row % 8 ^ 4) * 8;
    for (int k = tile.k_begin; k < tile.k_end; k += C::BLOCK_K, ring.advance()) {
        ptx::mbar_wait(&s.empty_barrier[ring.slot], ring.phase ^ 1);
        const bool inside = k + chunk * 8 < tile.k_end;
        typename C::Element* s_tokens = s.tokens[ring.slot];
        const typename C::Element* column = tokens + k;
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
            if (i < rows)
                ptx::cp_async_16(s_tokens + (i % 2 ? s_odd : s_even) + i * ROW_STEP * C::BLOCK_K,
                                 column + source[i] * 8ll, inside);
        ptx::cp_async_mbar_arrive(&s.full_barrier[ring.slot]);
    }
}

template <class C>
__device__ void produce_tokens(SharedStorage<C>& s, const Problem& p, const CUtensorMap* map,
                               const typename C::Element* tokens, const int* permuted_idx, int top_k) {
    Cursor<C::STAGES> ring;
    Cursor<2> handover;
    ptx::griddep_wait();  // the tokens may be another kernel's results; the weights are not
    for (;;) {
        const Tile tile = receive_tile(s, handover);
        if (tile.expert < 0) return;
        if constexpr (C::ROWS == GATHERED)
            gather_tokens<C>(s, tokens, permuted_idx, top_k, p.k, tile, ring);
        else if (threadIdx.x % 32 == 0)
            load_tokens<C>(s, map, tile, ring);
        release_tile(s, handover);
    }
}

// ---- consumers ----

// The warp's part of a stage has been read: every block whose copies go there must know.
template <class C>
__device__ void release_stage(SharedStorage<C>& s, int slot) {
    const int lane_idx = threadIdx.x % 32;
    if constexpr (C::CLUSTER > 1) {
        if (lane_idx < C::CLUSTER) ptx::mbar_arrive_cluster_relaxed(&s.empty_barrier[slot], lane_idx);
    } else if (lane_idx == 0) {
        ptx::mbar_arrive(&s.empty_barrier[slot]);
    }
}

template <class C, int N>
__device__ void multiply(SharedStorage<C>& s, Cursor<C::STAGES>& ring, float (&acc)[2][N / 2], const Tile& tile) {
    const int warpgroup_idx = threadIdx.x / 128;
    int previous = -1;
    ptx::wgmma_fence(acc[0], acc[1]);
    for (int blocks = (tile.k_end - tile.k_begin + C::BLOCK_K - 1) / C::BLOCK_K; blocks > 0; --blocks, ring.advance()) {
        ptx::mbar_wait(&s.full_barrier[ring.slot], ring.phase);
        if constexpr (C::ROWS == GATHERED) ptx::fence_proxy_async();  // cp.async wrote through the generic proxy
        const auto a = ptx::k_major(&s.weights[ring.slot][warpgroup_idx * 128 * C::BLOCK_K]);
        const auto b = ptx::k_major(&s.tokens[ring.slot][0]);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < C::BLOCK_K / 16; ++step)
#pragma unroll
            for (int m = 0; m < 2; ++m)
                ptx::wgmma_ss<N, typename C::Element>(acc[m], a + (m * 64 * C::BLOCK_K * 2 + step * 32), b + step * 32);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();  // the k block before this one
        if (previous >= 0) release_stage(s, previous);
        previous = ring.slot;
    }
    ptx::wgmma_wait<0>(acc[0], acc[1]);
    release_stage(s, previous);
}

__device__ float swiglu(float gate, float up) { return gate * ptx::rcp(1.f + ptx::ex2(gate * -1.44269504f)) * up; }

// One of two 8x8 blocks of outputs (features x tokens) of a group of 8 tokens. SwiGLU: a thread holds gate in rows g and up
// in rows g + 8 of both m64 tiles, one block each. Otherwise `pass` is the m64 tile.
template <class C, int N>
__device__ uint32_t output(const float (&acc)[2][N / 2], int group, int half, int pass) {
    using Element = typename C::Element;
    if constexpr (C::GATE_UP) {
        const float* d = &acc[half][4 * group];
        return ptx::pack<Element>(swiglu(d[0], d[2]), swiglu(d[1], d[3]));
    } else {
        return ptx::pack<Element>(acc[pass][4 * group + 2 * half], acc[pass][4 * group + 2 * half + 1]);
    }
}

// Chunk i of a tile: OUT_TOKENS tokens, from `first` on, and 64 of a warpgroup's features.
template <class C, int N>
struct Chunks {
    static constexpr int EACH_PASS = (N + C::OUT_TOKENS - 1) / C::OUT_TOKENS, COUNT = C::FEATURES / 64 * EACH_PASS;
    __device__ static constexpr int pass(int i) { return i / EACH_PASS; }
    __device__ static constexpr int first(int i) { return i % EACH_PASS * C::OUT_TOKENS; }
};

// Accumulators hold features in rows and tokens in columns; stmatrix turns them, so that a token's features are contiguous.
template <class C, int N>
__device__ void stage_chunk(uint4* s_out, const float (&acc)[2][N / 2], int i) {
    const int warp_idx = threadIdx.x / 32 % 4, lane_idx = threadIdx.x % 32, matrix = lane_idx / 8 % 2;
    const int s_chunk = C::GATE_UP ? matrix * 4 + warp_idx : warp_idx * 2 + matrix, s_row = lane_idx / 16 * 8 + lane_idx % 8;
    const int pass = Chunks<C, N>::pass(i), first = Chunks<C, N>::first(i);
#pragma unroll
    for (int row = 0; row < C::OUT_TOKENS; row += 16) {
        if (first + row >= N) continue;
        uint32_t blocks[4] = {};  // the second half stays zero after an odd group of 8 tokens
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (first + row + j / 2 * 8 < N) blocks[j] = output<C, N>(acc, (first + row) / 8 + j / 2, j % 2, pass);
        ptx::stmatrix_x4_trans(&s_out[(row + s_row) * 8 + (s_chunk ^ lane_idx % 8)], blocks);
    }
}

// 16 bytes to global memory at a time. `turn` counts the staging buffers used so far.
template <class C, int N>
__device__ void store(SharedStorage<C>& s, const float (&acc)[2][N / 2], const Tile& tile, typename C::Element* out,
                      int features, int& turn) {
    const int warpgroup_idx = threadIdx.x / 128, s_row = threadIdx.x % 128 / 8, chunk = threadIdx.x % 8;
    const int feature = (tile.weight_block * C::CONSUMERS + warpgroup_idx) * C::FEATURES + chunk * 8;
    typename C::Element* target = out + (long long)(tile.out_row + s_row) * features + feature;
    const int rows = tile.rows - s_row;
    stage_chunk<C, N>(s.out[warpgroup_idx][turn & 1], acc, 0);
#pragma unroll
    for (int i = 0; i < Chunks<C, N>::COUNT; ++i) {
        // This chunk has been written; and the other buffer, which is next, has been read.
        ptx::bar_sync(1 + warpgroup_idx, 128);
        const uint4* s_out = s.out[warpgroup_idx][turn++ & 1];
        const int pass = Chunks<C, N>::pass(i), first = Chunks<C, N>::first(i);
        uint4 values[C::OUT_TOKENS / 16];
#pragma unroll
        for (int j = 0; j < C::OUT_TOKENS / 16; ++j)
            if (first + j * 16 < rows) values[j] = s_out[(j * 16 + s_row) * 8 + (chunk ^ s_row % 8)];
        if (i + 1 < Chunks<C, N>::COUNT) stage_chunk<C, N>(s.out[warpgroup_idx][turn & 1], acc, i + 1);
#pragma unroll
        for (int j = 0; j < C::OUT_TOKENS / 16; ++j)
            if (first + j * 16 < rows && feature + pass * 64 < features)
                *reinterpret_cast<uint4*>(target + (long long)(first + j * 16) * features + pass * 64) = values[j];
    }
}

// Accumulators of rows g and g + 8 of both m64 tiles. GATE_UP: the gate and the up row of one feature.
template <class C, int N>
__device__ void add_bias(float (&acc)[2][N / 2], const typename C::Element* bias, const Tile& tile, int features) {
    const int warpgroup_idx = threadIdx.x / 128, warp_idx = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4;
    const int first = (tile.weight_block * C::CONSUMERS + warpgroup_idx) * C::FEATURES;
    bias += (long long)tile.expert * features * (C::GATE_UP ? 2 : 1);
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int feature = first + (C::GATE_UP ? (m * 4 + warp_idx) * 8 : m * 64 + warp_idx * 16 + half * 8) + g;
            if (feature >= features) continue;
            const float value = float(bias[feature + (C::GATE_UP ? half * features : 0)]);
#pragma unroll
            for (int i = half * 2; i < N / 2; i += 4) acc[m][i] += value, acc[m][i + 1] += value;
        }
}

// The narrowest instance that holds the tile's tokens.
template <class C, int N>
__device__ void compute(SharedStorage<C>& s, Cursor<C::STAGES>& ring, const Tile& tile,
                        const typename C::Element* bias, typename C::Element* out, int features, int& turn) {
    if constexpr (C::narrower(N) > 0) {
        if (tile.rows <= C::narrower(N)) return compute<C, C::narrower(N)>(s, ring, tile, bias, out, features, turn);
    }
    float acc[2][N / 2] = {};  // set here: a register that is first read in a loop is kept for the whole loop
    multiply<C, N>(s, ring, acc, tile);
    if (bias && tile.k_begin == 0) add_bias<C, N>(acc, bias, tile, features);
    store<C, N>(s, acc, tile, out, features, turn);
}

template <class C>
__device__ void consume(SharedStorage<C>& s, const typename C::Element* bias, typename C::Element* out, int features) {
    Cursor<C::STAGES> ring;
    Cursor<2> handover;
    int turn = 0;
    for (;;) {
        const Tile& tile = receive_tile(s, handover);  // stays in shared memory: the accumulators need the registers
        if (tile.expert < 0) return;
        compute<C, C::BLOCK_TOKENS>(s, ring, tile, bias, out, features, turn);
        release_tile(s, handover);
    }
}

template <class C>
__device__ void initialise(SharedStorage<C>& s) {
    for (int stage = 0; stage < C::STAGES; ++stage) {
        ptx::mbar_init(&s.full_barrier[stage], 1 + (C::ROWS == GATHERED ? 32 * C::TOKEN_WARPS : 1));
        ptx::mbar_init(&s.empty_barrier[stage], 4 * C::CONSUMERS * C::CLUSTER);
    }
    for (int slot = 0; slot < 2; ++slot) {
        ptx::mbar_init(&s.tile_full_barrier[slot], 1);
        ptx::mbar_init(&s.tile_empty_barrier[slot], 4 * C::CONSUMERS + C::TOKEN_WARPS);
        ptx::mbar_init(&s.number_full_barrier[slot], 1);
        ptx::mbar_init(&s.number_empty_barrier[slot], 1);
    }
    ptx::mbar_fence_init();
}

// Every thread of the block, or of the cluster, is here.
template <class C>
__device__ void meet() {
    if constexpr (C::CLUSTER > 1) {
        ptx::cluster_arrive();
        ptx::cluster_wait();
    } else {
        __syncthreads();
    }
}

template <class C>
__global__ void __cluster_dims__(C::CLUSTER, 1, 1) __launch_bounds__(C::THREADS, C::LARGE ? 1 : 2)
    grouped_gemm_kernel(const __grid_constant__ CUtensorMap weights_map, const __grid_constant__ CUtensorMap tokens_map,
                        const typename C::Element* tokens, const int* permuted_idx, const int* expert_offsets,
                        const int* block_offsets, const typename C::Element* bias,  // [num_experts, rows], or null
                        typename C::Element* out,
                        int* counters,  // [2], tiles claimed by the product with GATE_UP and by the one without
                        int num_experts, int weight_blocks, int features, int k, int top_k, int splits, int num_slots) {
    auto& s = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    if (threadIdx.x == 0) initialise(s);
    if (threadIdx.x == 32) {  // the maps themselves must arrive before the first copy
        ptx::tma_prefetch_map(&weights_map);
        if (C::ROWS == CONTIGUOUS) ptx::tma_prefetch_map(&tokens_map);
    }
    if (C::GATE_UP) ptx::griddep_wait();  // for the offsets; the second GEMM starts when the first one has them
    ptx::griddep_launch_dependents();
    for (int i = threadIdx.x; i <= num_experts; i += C::THREADS) s.block_offsets[i] = block_offsets[i];
    meet<C>();  // barriers and offsets are there
    const int k_split = (k + splits * C::BLOCK_K - 1) / (splits * C::BLOCK_K) * C::BLOCK_K;
    const Problem problem = {expert_offsets, num_experts, weight_blocks, k, splits, k_split, num_slots,
                             counters + (C::GATE_UP ? 0 : 1)};
    const int producer_warp = int(threadIdx.x / 32) - 4 * C::CONSUMERS;
    if (producer_warp >= 0) {
        if constexpr (C::LARGE) ptx::reg_dealloc<C::PRODUCER_REGISTERS>();
        if (producer_warp == 0)
            produce_weights<C>(s, problem, &weights_map);
        else if (producer_warp <= C::TOKEN_WARPS)
            produce_tokens<C>(s, problem, &tokens_map, tokens, permuted_idx, top_k);
    } else {
        if constexpr (C::LARGE) ptx::reg_alloc<C::CONSUMER_REGISTERS>();
        consume<C>(s, bias, out, features);
    }
    if constexpr (C::CLUSTER > 1) meet<C>();  // a block must not end while others may still signal its barriers
}
