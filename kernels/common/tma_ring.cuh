// Generated from nbs/42_tma.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Tiles as TMA lays them down in shared memory, and rings of slots that it fills. For the steps from 42 on.
#pragma once
#include "common/ptx/mbarrier.h"
#include "common/ptx/tma.h"

// ROWS rows of a head: panels of 64 columns, one after the other. A row of a panel is 128 bytes, and its 16-byte chunk
// c is at place c ^ row % 8: the 128-byte swizzle, a function of the address, hence the alignment.
template <class Element, int ROWS, int HEAD_DIM>
struct PanelTile {
    static constexpr int PANEL = 64, CHUNKS = HEAD_DIM / 8, STRIDE = PANEL, PANEL_BYTES = ROWS * PANEL * 2;
    alignas(1024) Element elements[ROWS * HEAD_DIM];
    static_assert(HEAD_DIM % PANEL == 0 && ROWS <= 256, "whole panels; one TMA box holds the rows of a panel");

    // Where a chunk begins, and how far from a chunk in column 0 or 1 another one is: the interface of SharedTile.
    static __device__ int offset(int row, int chunk) {
        return chunk / 8 * ROWS * PANEL + row * PANEL + (chunk % 8 ^ row % 8) * 8;
    }
    static __device__ int moved(int offset, int rows, int chunks) {
        return (offset ^ chunks % 8 * 8) + rows * PANEL + chunks / 8 * ROWS * PANEL;
    }

    // Start filling the tile from row `row` on; rows and columns beyond the tensor's become 0. One thread calls it.
    __device__ __forceinline__ void load(const CUtensorMap* map, uint64_t* full, int row, int head, int batch) {
        ptx::mbar_arrive_expect_tx(full, sizeof elements);
        #pragma unroll
        for (int column = 0; column < HEAD_DIM; column += PANEL)
            ptx::tma_load<4>(elements + column * ROWS, map, full, {column, row, head, batch});
    }
};

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

// Slots for tiles. A slot's `full` completes when its tile has landed, its `empty` when every consumer has released it.
template <class Tile, int STAGES>
struct Ring {
    Tile tiles[STAGES];
    uint64_t full[STAGES], empty[STAGES];

    __device__ void init(int consumer_warps) {
        for (int i = 0; i < STAGES; ++i) {
            ptx::mbar_init(&full[i], 1);  // the producer, which announces the bytes as well
            ptx::mbar_init(&empty[i], consumer_warps);
        }
    }

    __device__ __forceinline__ void load(const Slot<STAGES>& slot, const CUtensorMap* map, int row, int head, int batch) {
        // Every consumer has released the slot; otherwise TMA overwrites live data. The first lap passes: it starts empty.
        ptx::mbar_wait(&empty[slot.stage], slot.phase ^ 1);
        tiles[slot.stage].load(map, &full[slot.stage], row, head, batch);
    }

    __device__ __forceinline__ const Tile& wait(const Slot<STAGES>& slot) {
        ptx::mbar_wait(&full[slot.stage], slot.phase);
        return tiles[slot.stage];
    }

    // This warp has read all it will read of the slot.
    __device__ __forceinline__ void release(const Slot<STAGES>& slot) {
        __syncwarp();  // the reads of all lanes come before the arrival of one
        if (threadIdx.x % 32 == 0) ptx::mbar_arrive(&empty[slot.stage]);
    }
};
