// Generated from nbs/47_overlap.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Tiles of queries in the order in which a persistent grid takes them, and what a warpgroup has to do with one.
#pragma once
#include "common/tma_ring.cuh"

enum class Mask { NONE, CAUSAL };

struct Problem {
    int batch, num_heads, num_heads_k, seqlen_q, seqlen_k, heads_per_group;
};

// BLOCK_M queries of one head, and how many keys the last of them sees. m_start -1 means: no more tiles.
struct Tile {
    int m_start, head, batch, num_keys;
};

template <class C>
__device__ inline int num_m_blocks(const Problem& p) { return (p.seqlen_q + C::BLOCK_M - 1) / C::BLOCK_M; }

// How many keys query m sees: with a causal mask the last query sees the last key. May be negative.
template <class C>
__device__ inline int visible_keys(int m, const Problem& p) {
    return C::MASK == Mask::CAUSAL ? min(p.seqlen_k, m + 1 + p.seqlen_k - p.seqlen_q) : p.seqlen_k;
}

template <class C, bool LONGEST_FIRST = true>
__device__ inline Tile tile_at(int index, const Problem& p) {
    const int m_blocks = num_m_blocks<C>(p), heads = p.num_heads * p.batch;
    int m_block, head;
    if (C::MASK == Mask::CAUSAL && LONGEST_FIRST) {
        const int group = index / (p.heads_per_group * m_blocks), first = group * p.heads_per_group;
        const int size = min(p.heads_per_group, heads - first), rest = index - first * m_blocks;
        m_block = m_blocks - 1 - rest / size;
        head = first + rest % size;
    } else {
        m_block = index % m_blocks;
        head = index / m_blocks;
    }
    const int m_start = m_block * C::BLOCK_M, last = min(m_start + C::BLOCK_M, p.seqlen_q) - 1;
    return {m_start, head % p.num_heads, head / p.num_heads, max(0, visible_keys<C>(last, p))};
}

// A tile as the warpgroup of 64 queries from first_row on sees it: it computes the blocks from `last` down to 0, those
// below `unmasked` without a mask, after `skipped` ones that only other warpgroups see.
struct Work {
    int last, skipped, unmasked;
};

template <class C>
__device__ inline Work work_of(int num_keys, int first_row, bool peel, const Problem& p) {
    const int seen = first_row < p.seqlen_q ? max(0, min(num_keys, visible_keys<C>(first_row + 63, p))) : 0;
    const int last = (seen + C::BLOCK_N - 1) / C::BLOCK_N - 1, last_of_tile = (num_keys + C::BLOCK_N - 1) / C::BLOCK_N - 1;
    return {last, last_of_tile - last, peel ? max(0, visible_keys<C>(first_row, p)) / C::BLOCK_N : 0};
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
