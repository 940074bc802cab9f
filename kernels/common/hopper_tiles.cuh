// Generated from nbs/47_overlap.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Tiles of queries in the order in which a persistent grid takes them, and what a warpgroup has to do with one.
#pragma once
#include "common/ptx/barrier.h"
#include "common/wgmma_tile.cuh"

enum class Mask { NONE, CAUSAL };
enum class Tiles { WHOLE, DIVIDED };

// The first whole_tiles tiles are computed at once, the others in `parts` parts of their keys.
struct Problem {
    int batch, num_heads, num_heads_k, seqlen_q, seqlen_k, heads_per_group, whole_tiles, parts;
};

// BLOCK_M queries of one head, and how many keys, from first_key on, the last of them sees. `part` counts the parts of
// all divided tiles; of a tile that is whole it is -1. If it is flipped, the first warpgroup has its last queries. The first
// tile of a head may begin before its first query. num_keys -1 means: no more tiles.
struct Tile {
    int m_start, head, batch, num_keys, first_key = 0, part = -1, flipped = 0;
};

template <class C>
__device__ inline int num_m_blocks(const Problem& p) { return (p.seqlen_q + C::BLOCK_M - 1) / C::BLOCK_M; }

// How many keys query m sees: with a causal mask the last query sees the last key. May be negative.
template <class C>
__device__ inline int visible_keys(int m, const Problem& p) {
    return C::MASK == Mask::CAUSAL ? min(p.seqlen_k, m + 1 + p.seqlen_k - p.seqlen_q) : p.seqlen_k;
}

// The order: head after head. With a causal mask heads come in groups, the tiles of a group from its last queries to its
// first, and a group that is not full is the first of all. What a head's tiles have too many, in 64 queries, then stands
// before its first query, where a tile sees few keys.
template <class C>
__device__ inline Tile tile_at(int index, const Problem& p, bool longest_first) {
    const bool in_groups = C::MASK == Mask::CAUSAL && longest_first;
    const int m_blocks = num_m_blocks<C>(p), heads = p.num_heads * p.batch, group = in_groups ? p.heads_per_group : 1;
    const int left = heads % group, after = index / m_blocks - left;  // heads of the small group, and beyond it
    const int first = after < 0 ? 0 : left + after / group * group, size = after < 0 ? left : group;
    const int rest = index - first * m_blocks, head = first + rest % size;
    const int before = C::MASK == Mask::CAUSAL ? m_blocks * C::BLOCK_M - (p.seqlen_q + 63) / 64 * 64 : 0;
    const int m_start = (in_groups ? m_blocks - 1 - rest / size : rest / size) * C::BLOCK_M - before;
    const int last = min(m_start + C::BLOCK_M, p.seqlen_q) - 1;
    return {m_start, head % p.num_heads, head / p.num_heads, max(0, visible_keys<C>(last, p))};
}

// Tiles, and parts of those that are divided.
template <class C>
__device__ inline int num_items(const Problem& p) {
    const int tiles = num_m_blocks<C>(p) * p.num_heads * p.batch;
    return C::DIVIDES ? p.whole_tiles + (tiles - p.whole_tiles) * p.parts : tiles;
}

template <class C>
__device__ inline Tile item_at(int index, const Problem& p, bool longest_first) {
    if (!C::DIVIDES || index < p.whole_tiles) return tile_at<C>(index, p, longest_first);
    const int part = index - p.whole_tiles, blocks = (p.seqlen_k + C::BLOCK_N - 1) / C::BLOCK_N;
    Tile tile = tile_at<C>(p.whole_tiles + part / p.parts, p, longest_first);
    tile.first_key = blocks * (part % p.parts) / p.parts * C::BLOCK_N;
    tile.num_keys = min(p.seqlen_k, blocks * (part % p.parts + 1) / p.parts * C::BLOCK_N) - tile.first_key;
    tile.part = part;
    return tile;
}

// A tile as the warpgroup of 64 queries from first_row on sees it: it computes the blocks from `last` down to 0, those
// below `unmasked` without a mask, after `skipped` ones that only other warpgroups see.
struct Work {
    int last, skipped, unmasked;
};

template <class C>
__device__ inline Work work_of(int num_keys, int first_row, bool peel, const Problem& p) {
    const int seen = 0 <= first_row && first_row < p.seqlen_q ? max(0, min(num_keys, visible_keys<C>(first_row + 63, p))) : 0;
    const int last = (seen + C::BLOCK_N - 1) / C::BLOCK_N - 1, last_of_tile = (num_keys + C::BLOCK_N - 1) / C::BLOCK_N - 1;
    return {last, last_of_tile - last, peel ? max(0, min(num_keys, visible_keys<C>(first_row, p))) / C::BLOCK_N : 0};
}

template <class C>
__device__ __forceinline__ int first_row_of(const Tile& tile, int warpgroup) {  // negative: before the first query
    return tile.m_start + 64 * (tile.flipped ? C::WARPGROUPS - 1 - warpgroup : warpgroup);
}

// Flip a tile if that brings the first and the last warpgroup together. `behind` says by how many blocks the last one is
// behind the first; it cannot be by more than there are slots, then the other waits.
template <class C>
__device__ inline void flip(Tile& tile, int& behind, const Problem& p) {
    const int more = work_of<C>(tile.num_keys, tile.m_start + C::BLOCK_M - 64, true, p).last -
                     work_of<C>(tile.num_keys, tile.m_start, true, p).last;
    tile.flipped = behind * more > 0;
    behind = max(-C::STAGES, min(C::STAGES, behind + (tile.flipped ? -more : more)));
}

// Pass slots without reading them, as every consumer must: a slot is free when all warps have released it.
template <class Ring, class Slot>
__device__ __forceinline__ void skip(int count, Ring& ring, Slot& slot) {
    for (; count > 0; --count, slot.next()) {
        ring.wait(slot);
        ring.release(slot);
    }
}

// The value of one lane, which tells the compiler that it is the same in all of them.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffff, x, 0); }

// The tile whose queries are in a slot. Read by lane 0 for all: it is lane 0 whose arrival lets the producer overwrite it.
template <class C>
__device__ __forceinline__ Tile read_tile(const Tile& s_tile) {
    Tile tile = {};
    if (threadIdx.x % 32 == 0) tile = s_tile;
    return {uniform(tile.m_start), uniform(tile.head), uniform(tile.batch), uniform(tile.num_keys), 0,
            C::DIVIDES ? uniform(tile.part) : -1, uniform(tile.flipped)};
}

// Start loading the queries of a tile, the 64 of each warpgroup to its place. The slot is free.
template <class C, class Ring, class Slot>
__device__ __forceinline__ void load_queries(Ring& ring, const Slot& slot, const CUtensorMap* map_q, const Tile& tile) {
    ptx::mbar_arrive_expect_tx(&ring.full[slot.stage], sizeof(typename C::QTile));
    for (int i = 0; i < C::WARPGROUPS; ++i)
        #pragma unroll
        for (int column = 0; column < C::HEAD_DIM; column += C::QTile::PANEL)
            ptx::tma_load<4>(ring.tiles[slot.stage].elements + column * C::BLOCK_M + 64 * i * C::QTile::PANEL, map_q,
                             &ring.full[slot.stage], {column, first_row_of<C>(tile, i), tile.head, tile.batch});
}

template <class C>
__device__ __forceinline__ void rescale_out(RowState<C>& r, const float (&factor)[2]) {
    #pragma unroll
    for (int i = 0; i < C::HEAD_DIM / 2; ++i) r.out[i] *= factor[i / 2 % 2];
}

// The operand of the second product.
template <class C>
__device__ __forceinline__ void round_weights(RowState<C>& r) {
    #pragma unroll
    for (int i = 0; i < C::BLOCK_N / 4; ++i)
        r.weights[i] = ptx::pack<typename C::Element>(r.scores[2 * i], r.scores[2 * i + 1]);
}

// What the warpgroups leave of the parts of divided tiles, and how many of a tile's have come. In memory, because they
// are computed by different blocks.
struct Parts {
    float4* g_rows;           // [parts of all divided tiles, WARPGROUPS, HEAD_DIM / 8 + 1, 128 threads]
    unsigned int* g_arrived;  // [divided tiles, WARPGROUPS]: 0 before and after the launch
};

// Where this thread leaves what it has of a part: its output in its own order, then the logarithms of its two sums. The
// thread that reads it holds the same rows and columns.
template <class C>
__device__ __forceinline__ float4* place_of(const Parts& parts, int part, int warpgroup) {
    return parts.g_rows + (part * C::WARPGROUPS + warpgroup) * (C::HEAD_DIM / 8 + 1) * 128 + threadIdx.x % 128;
}

// Leave this warpgroup's rows of a part. True for the one that comes last: it has all other parts to read.
template <class C>
__device__ __forceinline__ bool leave_part(const RowState<C>& r, const float (&inverse)[2], const float (&log2_sum)[2],
                                           const Parts& parts, int part, int num_parts, int warpgroup, bool& s_is_last) {
    float4* g_mine = place_of<C>(parts, part, warpgroup);
    #pragma unroll
    for (int i = 0; i < C::HEAD_DIM / 2; i += 4)
        g_mine[i / 4 * 128] = make_float4(r.out[i] * inverse[0], r.out[i + 1] * inverse[0],
                                          r.out[i + 2] * inverse[1], r.out[i + 3] * inverse[1]);
    g_mine[C::HEAD_DIM / 8 * 128] = make_float4(log2_sum[0], log2_sum[1], 0.0f, 0.0f);
    __threadfence();                    // what was written comes before the arrival, for other SMs
    ptx::bar_sync(1 + warpgroup, 128);  // all threads have written
    if (threadIdx.x % 128 == 0) {
        unsigned int* g_arrived = &parts.g_arrived[part / num_parts * C::WARPGROUPS + warpgroup];
        s_is_last = atomicInc(g_arrived, num_parts - 1) == num_parts - 1;  // the last arrival leaves 0 behind
        __threadfence();                // the arrival comes before the reads of what others have written
    }
    ptx::bar_sync(1 + warpgroup, 128);  // the verdict is there
    return uniform(threadIdx.x % 32 == 0 && s_is_last);
}

// The output of a whole tile from those of its parts: their mean, weighted by their sums. In the order of the parts,
// whichever came last, so that the bits are the same in every run. log2_sum becomes that of the tile.
template <class C>
__device__ __forceinline__ void join_parts(RowState<C>& r, float (&inverse)[2], float (&log2_sum)[2], const Parts& parts,
                                           int part, int num_parts, int warpgroup) {
    const int first = part / num_parts * num_parts;
    float largest[2] = {minus_infinity(), minus_infinity()}, sum[2] = {};
    #pragma unroll 1
    for (int i = 0; i < num_parts; ++i) {
        const float4 logs = __ldcg(place_of<C>(parts, first + i, warpgroup) + C::HEAD_DIM / 8 * 128);
        largest[0] = fmaxf(largest[0], logs.x), largest[1] = fmaxf(largest[1], logs.y);
    }
    #pragma unroll
    for (int h = 0; h < 2; ++h) largest[h] = largest[h] == minus_infinity() ? 0.0f : largest[h];  // weights 2^(-inf - 0)
    #pragma unroll
    for (int i = 0; i < C::HEAD_DIM / 2; ++i) r.out[i] = 0.0f;
    #pragma unroll 1
    for (int i = 0; i < num_parts; ++i) {
        const float4* g_part = place_of<C>(parts, first + i, warpgroup);
        const float4 logs = __ldcg(g_part + C::HEAD_DIM / 8 * 128);
        const float weight[2] = {ptx::ex2(logs.x - largest[0]), ptx::ex2(logs.y - largest[1])};
        sum[0] += weight[0], sum[1] += weight[1];
        #pragma unroll
        for (int j = 0; j < C::HEAD_DIM / 2; j += 4) {
            const float4 out = __ldcg(g_part + j / 4 * 128);
            r.out[j] = fmaf(weight[0], out.x, r.out[j]), r.out[j + 1] = fmaf(weight[0], out.y, r.out[j + 1]);
            r.out[j + 2] = fmaf(weight[1], out.z, r.out[j + 2]), r.out[j + 3] = fmaf(weight[1], out.w, r.out[j + 3]);
        }
    }
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
        inverse[h] = sum[h] == 0.0f ? 0.0f : 1.0f / sum[h];
        log2_sum[h] = largest[h] + log2f(sum[h]);
    }
}
