// Generated from nbs/46_ping_pong.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Step 46, ping-pong: the two consumer warpgroups of step 44 take turns on the tensor cores.
// While one multiplies, the other computes its softmax. New against step 44: a turn has the second product of a tile
// and the first of the next; two named barriers pass it on.
#include "common/ptx/barrier.h"
#include "common/wgmma_tile.cuh"

enum class Turns { NONE, AT_ISSUE, AT_END };  // when a warpgroup lets the other one start its products
enum Barrier { TURN = 3 };                    // TURN + warpgroup; 0 is __syncthreads, 1 and 2 stand in store_rows

template <class Element, int BLOCK_M, int BLOCK_N, int HEAD_DIM, int STAGES, Turns TURNS_>
struct Config : WgmmaConfig<Element, BLOCK_M, BLOCK_N, HEAD_DIM, STAGES> {
    static constexpr Turns TURNS = TURNS_;
    static_assert(BLOCK_M == 128, "two warpgroups take turns");
};

template <class C>
struct SharedStorage {
    typename C::QTile q;  // a warpgroup's rows later hold its outputs
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

// The products of one warpgroup between two softmaxes: the second of a tile, the first of the next. Warpgroup 0 has the
// first turn, which has no second product yet; the last turn has no first product any more.
template <class C, bool HAS_PV, bool HAS_QK>
__device__ __forceinline__ void take_turn(RowState<C>& r, SharedStorage<C>& smem, Slot<C::STAGES>& k, Slot<C::STAGES>& v,
                                          int warpgroup) {
    // Nobody waits for the very last turn to end: a barrier must not be left half full.
    auto end_turn = [&] { if (HAS_QK || warpgroup == 0) ptx::bar_arrive(TURN + 1 - warpgroup, 256); };
    if (HAS_QK) smem.k.wait(k);
    if (HAS_PV) smem.v.wait(v);
    // The other warpgroup has ended its turn; otherwise products of both would compete for the tensor cores.
    if (C::TURNS != Turns::NONE && (HAS_PV || warpgroup == 1)) ptx::bar_sync(TURN + warpgroup, 256);
    ptx::wgmma_fence(r.scores, r.out, r.weights);
    if (HAS_PV) start_pv<C>(r, smem.v.tiles[v.stage]);
    if (HAS_QK) start_qk<C>(r, smem.q, smem.k.tiles[k.stage], warpgroup);
    if (C::TURNS == Turns::AT_ISSUE) end_turn();
    ptx::wgmma_wait<0>(r.scores, r.out, r.weights);
    if (C::TURNS == Turns::AT_END) end_turn();
    if (HAS_QK) smem.k.release(k), k.next();
    if (HAS_PV) smem.v.release(v), v.next();
}

// Two warpgroups in turns: softmax here, products there.
template <class C>
__device__ __forceinline__ void consume(RowState<C>& r, SharedStorage<C>& smem, int warpgroup, int num_tiles,
                                        int first_visible, int seqlen_k, float softmax_scale_log2) {
    if (num_tiles == 0) return;
    Slot<C::STAGES> k, v;
    take_turn<C, false, true>(r, smem, k, v, warpgroup);
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int n_start = tile * C::BLOCK_N;
        const int visible = first_visible - n_start;  // keys of this tile that the warpgroup's first row sees
        if (min(visible, seqlen_k - n_start) < C::BLOCK_N) mask_scores<C>(r, visible, seqlen_k - n_start);
        raise_max<C>(r, softmax_scale_log2);
        exponentiate<C>(r, softmax_scale_log2);
        if (tile + 1 < num_tiles) take_turn<C, true, true>(r, smem, k, v, warpgroup);
    }
    take_turn<C, true, false>(r, smem, k, v, warpgroup);
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) attention_ping_pong_kernel(
    const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
    const __grid_constant__ CUtensorMap map_v,    // boxes: one panel of a tile
    const __grid_constant__ CUtensorMap map_out,  // box: 64 rows of a panel
    float* g_lse,                                 // [batch, num_heads, seqlen_q], natural log, contiguous; or null
    int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int causal, float softmax_scale_log2) {
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const int m_start = (gridDim.x - 1 - blockIdx.x) * C::BLOCK_M;  // longest causal rows first
    const int head = blockIdx.y, head_k = head / (num_heads / num_heads_k), batch = blockIdx.z;

    // Row m sees the keys before m + diagonal; with a causal mask the last query sees the last key.
    const int diagonal = causal ? seqlen_k - seqlen_q + 1 : seqlen_k;
    const int num_keys = min(seqlen_k, m_start + C::BLOCK_M - 1 + diagonal);  // beyond it nothing is visible here
    const int num_tiles = num_keys > 0 ? (num_keys + C::BLOCK_N - 1) / C::BLOCK_N : 0;

    if (threadIdx.x == 0) {
        ptx::mbar_init(&smem.q_full, 1);
        smem.k.init(4 * C::WARPGROUPS);
        smem.v.init(4 * C::WARPGROUPS);
        ptx::mbar_fence_init();
    }
    __syncthreads();  // no thread may use a barrier before it is initialised, nor may TMA

    // The index comes from one lane, which tells the compiler that it is the same in all of them.
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    if (warpgroup == C::WARPGROUPS) {
        ptx::reg_dealloc<C::PRODUCER_REGISTERS>();
        if (threadIdx.x % 128 == 0) produce<C>(smem, &map_q, &map_k, &map_v, num_tiles, m_start, head, head_k, batch);
    } else {
        ptx::reg_alloc<C::CONSUMER_REGISTERS>();
        RowState<C> r;
        ptx::mbar_wait(&smem.q_full, 0);
        consume<C>(r, smem, warpgroup, num_tiles, m_start + 64 * warpgroup + diagonal, seqlen_k, softmax_scale_log2);
        if (g_lse) g_lse += (long long)(batch * num_heads + head) * seqlen_q;
        store_rows<C>(r, smem.q, &map_out, g_lse, m_start, seqlen_q, head, batch, softmax_scale_log2);
    }
}
