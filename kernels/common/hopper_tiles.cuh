// Generated from nbs/47_overlap.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Tiles of queries in the order in which a persistent grid takes them, and slots of shared memory that TMA fills.
#pragma once
#include "common/ptx/mbarrier.h"
#include "common/ptx/tma.h"

enum class Mask { NONE, CAUSAL };

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

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

template <class C>
__device__ inline Tile tile_at(int index, const Problem& p) {
    const int m_blocks = num_m_blocks<C>(p), heads = p.num_heads * p.batch;
    int m_block, head;
    if (C::MASK == Mask::CAUSAL) {
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

// A place in a ring of STAGES slots, and the parity of the lap.
template <int STAGES>
struct Slot {
    int stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage < STAGES) return;
        stage = 0;
        phase ^= 1;
    }
};

// Start filling a slot with ROWS rows of a head, in panels of 128 bytes.
template <int PANELS, int ROWS, int PANEL, class Element>
__device__ inline void load_tile(Element (&s_tile)[PANELS][ROWS][PANEL], const CUtensorMap* map, uint64_t* full, int row,
                                 int head, int batch) {
    ptx::mbar_arrive_expect_tx(full, int(sizeof s_tile));
    #pragma unroll
    for (int panel = 0; panel < PANELS; ++panel)
        ptx::tma_load<4>(s_tile[panel], map, full, {panel * PANEL, row, head, batch});
}
