// Generated from nbs/47_overlap.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Step 47, overlap and persistence: attention for Hopper's tensor cores.
// A producer thread fills rings of tiles by TMA; consumer warpgroups own 64 queries each, compute scores and
// weights in registers, and keep both products in flight under the softmax; a third role writes outputs by TMA.
// Grid: persistent, tiles of queries are handed out by a counter. Builds on step 20 and common/ptx.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/hopper_tiles.cuh"
#include "common/ptx/barrier.h"
#include "common/ptx/register.h"
#include "common/ptx/wgmma.h"
#include "common/wgmma_fragments.cuh"

// What makes this step fast, in the order in which the notebook adds it up.
enum Optimisation { PLAIN, OVERLAP, PEELING, PERSISTENCE, ORDER, RARE_RESCALING, OPTIMISTIC_MAXIMUM, EARLY_START };

template <class Element_, int HEAD_DIM_, int WARPGROUPS_, int BLOCK_N_, int STAGES_, int Q_STAGES_, Mask MASK_, Optimisation UP_TO>
struct Config {
    using Element = Element_;
    static constexpr int HEAD_DIM = HEAD_DIM_, WARPGROUPS = WARPGROUPS_, BLOCK_M = 64 * WARPGROUPS, BLOCK_N = BLOCK_N_;
    static constexpr int STAGES = STAGES_, Q_STAGES = Q_STAGES_;  // slots for tiles of K and as many of V, and of Q
    static constexpr Mask MASK = MASK_;
    __device__ static constexpr bool has(Optimisation o) { return o <= UP_TO; }
    // The next tile's queries arrive while this one's output is still to be written: there must be a second slot.
    static constexpr bool STARTS_EARLY = has(EARLY_START) && Q_STAGES > 1;
    static constexpr int PANEL = 64, PANELS = HEAD_DIM / PANEL;  // columns that fill a row of 128 bytes
    static constexpr int THREADS = 128 * (WARPGROUPS + 1);
    // An SM's 65,536 registers are dealt out equally at launch; the producer then gives most of its own away.
    static constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8, PRODUCER_REGISTERS = WARPGROUPS == 2 ? 40 : 32;
    static constexpr int CONSUMER_REGISTERS =
        (LAUNCH_REGISTERS * (WARPGROUPS + 1) - PRODUCER_REGISTERS) / WARPGROUPS / 8 * 8;
    // A score may exceed the maximum in use by so many powers of two, and weights add up to so much, before another
    // maximum is taken: far from overflow in bf16 and float32; in fp16 a weight stays below 2^15.5.
    static constexpr bool IS_FP16 = ptx::same_type<Element, __half>;
    static constexpr float LARGEST_GROWTH = IS_FP16 ? 15.5f : 64.5f, LARGEST_SUM = IS_FP16 ? 32768.0f : 1.8446744e19f;
    static_assert(HEAD_DIM % PANEL == 0 && BLOCK_N % 16 == 0, "whole panels, whole k steps of WGMMA");
    static_assert(WARPGROUPS >= 2 && BLOCK_M <= 256, "one TMA box holds the queries of a tile");
};

template <class C>
struct SharedStorage {
    alignas(1024) typename C::Element q[C::Q_STAGES][C::PANELS][C::BLOCK_M][C::PANEL];  // later the output
    alignas(1024) typename C::Element k[C::STAGES][C::PANELS][C::BLOCK_N][C::PANEL];
    alignas(1024) typename C::Element v[C::STAGES][C::PANELS][C::BLOCK_N][C::PANEL];
    Tile tile[C::Q_STAGES];  // whose queries are in the slot
    uint64_t q_full[C::Q_STAGES], q_empty[C::Q_STAGES], out_full[C::Q_STAGES];
    uint64_t k_full[C::STAGES], k_empty[C::STAGES], v_full[C::STAGES], v_empty[C::STAGES];
    alignas(4) bool too_large[2][C::WARPGROUPS][4];  // a warp's verdict, for an even and an odd block
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

template <class C>
__device__ inline void init_barriers(SharedStorage<C>& smem) {
    for (int i = 0; i < C::Q_STAGES; ++i) {
        ptx::mbar_init(&smem.q_full[i], 1);
        ptx::mbar_init(&smem.q_empty[i], 1);                   // the storing thread
        ptx::mbar_init(&smem.out_full[i], 4 * C::WARPGROUPS);  // every consumer warp
    }
    for (int i = 0; i < C::STAGES; ++i) {
        ptx::mbar_init(&smem.k_full[i], 1);
        ptx::mbar_init(&smem.v_full[i], 1);
        ptx::mbar_init(&smem.k_empty[i], 4 * C::WARPGROUPS);
        ptx::mbar_init(&smem.v_empty[i], 4 * C::WARPGROUPS);
    }
    ptx::mbar_fence_init();
}

template <class C>
__device__ inline void produce(SharedStorage<C>& smem, const CUtensorMap* map_q, const CUtensorMap* map_k,
                               const CUtensorMap* map_v, unsigned int* g_next_tile, const Problem& p) {
    Slot<C::Q_STAGES> q;
    Slot<C::STAGES> k, v;
    const int num_tiles = num_m_blocks<C>(p) * p.num_heads * p.batch;
    auto wait_for_slot = [&] {
        ptx::mbar_wait(&smem.out_full[q.stage], q.phase ^ 1);  // every consumer has read whose queries these were
        ptx::mbar_wait(&smem.q_empty[q.stage], q.phase ^ 1);   // and the output has left
    };
    for (int index = blockIdx.x; index < num_tiles;) {
        const Tile tile = tile_at<C, C::has(ORDER)>(index, p);
        const int head_k = tile.head / (p.num_heads / p.num_heads_k);
        // Before a slot is filled, wait until every consumer has released it; otherwise TMA overwrites live data.
        auto load_k = [&](int n) {
            ptx::mbar_wait(&smem.k_empty[k.stage], k.phase ^ 1);  // the first lap passes: slots start empty
            load_tile(smem.k[k.stage], map_k, &smem.k_full[k.stage], n * C::BLOCK_N, head_k, tile.batch);
            k.next();
        };
        auto load_v = [&](int n) {
            ptx::mbar_wait(&smem.v_empty[v.stage], v.phase ^ 1);
            load_tile(smem.v[v.stage], map_v, &smem.v_full[v.stage], n * C::BLOCK_N, head_k, tile.batch);
            v.next();
        };
        int n = (tile.num_keys + C::BLOCK_N - 1) / C::BLOCK_N - 1;
        if (C::Q_STAGES == 1 && n >= 0) load_k(n);  // there is a free slot for keys before there is one for queries
        wait_for_slot();
        smem.tile[q.stage] = tile;
        load_tile(smem.q[q.stage], map_q, &smem.q_full[q.stage], tile.m_start, tile.head, tile.batch);
        q.next();
        if (C::Q_STAGES > 1 && n >= 0) load_k(n);
        for (; n > 0; --n) {
            load_k(n - 1);
            load_v(n);
        }
        index = C::has(PERSISTENCE) ? gridDim.x + atomicInc(g_next_tile, num_tiles - 1) : num_tiles;
        if (n == 0) load_v(0);
    }
    wait_for_slot();
    smem.tile[q.stage] = {-1, 0, 0, 0};
    ptx::mbar_arrive(&smem.q_full[q.stage]);
}

template <class C>
__device__ inline void store(SharedStorage<C>& smem, const CUtensorMap* map_out) {
    for (Slot<C::Q_STAGES> q;; q.next()) {
        ptx::mbar_wait(&smem.q_full[q.stage], q.phase);
        const Tile tile = smem.tile[q.stage];
        if (tile.m_start < 0) return;
        ptx::mbar_wait(&smem.out_full[q.stage], q.phase);
        #pragma unroll
        for (int panel = 0; panel < C::PANELS; ++panel)
            ptx::tma_store<4>(map_out, {panel * C::PANEL, tile.m_start, tile.head, tile.batch}, smem.q[q.stage][panel]);
        ptx::tma_commit();
        ptx::tma_wait_read<0>();  // only then may the next queries overwrite the output
        ptx::mbar_arrive(&smem.q_empty[q.stage]);
    }
}

template <class C>
struct Consumer {
    using Element = typename C::Element;
    static constexpr int S_COUNT = C::BLOCK_N / 2, O_COUNT = C::HEAD_DIM / 2, P_COUNT = C::BLOCK_N / 4;

    SharedStorage<C>& smem;
    const Problem& p;
    float* const g_lse;
    const float scale;  // softmax_scale * log2(e)
    const int warpgroup, warp, lane;
    Slot<C::Q_STAGES> q;
    Slot<C::STAGES> k, v;
    float r_s[S_COUNT], r_out[O_COUNT];        // scores, then weights; the output before its division by row_sum
    uint32_t r_p[P_COUNT];                     // weights in pairs, as the second product reads them
    float row_max[2] = {minus_infinity(), minus_infinity()}, row_sum[2] = {};  // the sum of this thread's columns only
    float rescale[2], inverse[2];              // what a new maximum asks of the output; 1 / sums of the tile that ends
    int parity = 0, ended = 0, m_start = -1;   // slot of the tile that ends; first query of the present one

    __device__ __forceinline__ Consumer(SharedStorage<C>& smem, const Problem& p, float* g_lse, float scale)
        : smem(smem), p(p), g_lse(g_lse), scale(scale), warpgroup(uniform(threadIdx.x / 128) - 1),
          warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {
        #pragma unroll
        for (float& r : r_out) r = 0.0f;
    }

    // This warp is done with the slot; the producer waits for all of them.
    __device__ __forceinline__ void release(uint64_t (&empty)[C::STAGES], Slot<C::STAGES>& slot) {
        if (lane == 0) ptx::mbar_arrive(&empty[slot.stage]);
        slot.next();
    }

    __device__ __forceinline__ void issue_qk() {
        const ptx::MatrixDescriptor a = ptx::k_major(smem.q[q.stage][0][64 * warpgroup]), b = ptx::k_major(smem.k[k.stage]);
        #pragma unroll
        for (int i = 0; i < C::HEAD_DIM / 16; ++i)  // 16 columns are 32 bytes; four such steps, then the next panel
            ptx::wgmma_ss<C::BLOCK_N, Element>(r_s, a + (i / 4 * C::BLOCK_M * 128 + i % 4 * 32),
                                               b + (i / 4 * C::BLOCK_N * 128 + i % 4 * 32), i > 0);
        ptx::wgmma_commit();
    }

    __device__ __forceinline__ void issue_pv() {
        const ptx::MatrixDescriptor b = ptx::mn_major(smem.v[v.stage], C::BLOCK_N * 128);
        #pragma unroll
        for (int i = 0; i < C::BLOCK_N / 16; ++i)  // 16 keys are 16 rows of 128 bytes
            ptx::wgmma_rs<C::HEAD_DIM, Element, ptx::MN_MAJOR>(
                r_out, reinterpret_cast<const uint32_t(&)[4]>(r_p[4 * i]), b + i * 16 * 128);
        ptx::wgmma_commit();
    }

    __device__ __forceinline__ void mask(int n_start) {
        const int m = m_start + 64 * warpgroup + 16 * warp + lane / 4;
        mask_columns(r_s, {visible_keys<C>(m, p) - n_start, visible_keys<C>(m + 8, p) - n_start});
    }

    // Scores become weights under `shift`, a power of two; returns their sum over this thread's columns.
    __device__ __forceinline__ float weigh(int r, float shift) {
        float sum[2] = {0.0f, 0.0f};
        #pragma unroll
        for (int i = 2 * r; i < S_COUNT; i += 4)
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                r_s[i + j] = ptx::ex2(fmaf(r_s[i + j], scale, -shift));
                sum[j] += r_s[i + j];
            }
        return sum[0] + sum[1];
    }

    // A row takes its new maximum if the weights would grow by more than 2^LIMIT under the old one; LIMIT is 8, and
    // after an optimistic try the most that passes there. Returns whether the output so far has to be rescaled.
    template <bool RETRY>
    __device__ __forceinline__ bool softmax_exact() {
        constexpr float LIMIT = RETRY ? C::LARGEST_GROWTH : C::has(RARE_RESCALING) ? 8.0f : 0.0f;
        float new_max[2];
        bool grew = false;
        #pragma unroll
        for (int r = 0; r < 2; ++r) {
            float a = r_s[2 * r], b = r_s[2 * r + 1];  // two chains, half as long
            #pragma unroll
            for (int i = 2 * r + 4; i < S_COUNT; i += 4) {
                a = fmaxf(a, r_s[i]);
                b = fmaxf(b, r_s[i + 1]);
            }
            a = fmaxf(a, b);
            a = fmaxf(a, __shfl_xor_sync(0xffffffff, a, 1));
            a = fmaxf(a, __shfl_xor_sync(0xffffffff, a, 2));
            const bool take = (a - row_max[r]) * scale > LIMIT;  // not if both are -inf: no key yet
            new_max[r] = take ? a : row_max[r];
            grew |= take;
        }
        grew = __any_sync(0xffffffff, grew);
        #pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float base = new_max[r] == minus_infinity() ? 0.0f : new_max[r];  // no key yet: 2^(-inf - 0) = 0
            if (grew) {
                rescale[r] = ptx::ex2((row_max[r] - base) * scale);  // exactly 1 for a row that keeps its maximum
                row_sum[r] *= rescale[r];
            }
            row_max[r] = new_max[r];
            row_sum[r] += weigh(r, base * scale);
        }
        return grew;
    }

    // Returns false, in all threads of the warpgroup, if the scores are lost and have to be computed again.
    __device__ __forceinline__ bool softmax_optimistic() {
        float sum[2];
        #pragma unroll
        for (int r = 0; r < 2; ++r) sum[r] = weigh(r, row_max[r] * scale);
        const bool fits = sum[0] <= C::LARGEST_SUM && sum[1] <= C::LARGEST_SUM;
        const bool too_large = __any_sync(0xffffffff, !fits);
        if (lane == 0) smem.too_large[parity][warpgroup][warp] = too_large;
        ptx::bar_sync(1 + warpgroup, 128);
        const uint32_t verdicts = *reinterpret_cast<const uint32_t*>(smem.too_large[parity][warpgroup]);
        parity ^= 1;
        if (verdicts) return false;
        row_sum[0] += sum[0];
        row_sum[1] += sum[1];
        return true;
    }

    __device__ __forceinline__ void wait_for_keys() { ptx::mbar_wait(&smem.k_full[k.stage], k.phase); }

    // The scores of block n, together with the product of the weights in r_p: those of block n + 1, or, if this is the
    // first block of a tile, the last ones of the tile before, whose output then leaves. The keys have arrived.
    template <bool MASKED>
    __device__ __forceinline__ void step(int n, bool is_first) {
        ptx::wgmma_fence(r_s, r_out, r_p);
        issue_qk();
        ptx::mbar_wait(&smem.v_full[v.stage], v.phase);
        ptx::wgmma_fence(r_out, r_p);
        issue_pv();
        if (MASKED && is_first) close_rows();
        if constexpr (C::has(OVERLAP)) ptx::wgmma_wait<1>(r_s);
        else ptx::wgmma_wait<0>(r_s, r_out, r_p);
        bool grew = false;
        if constexpr (MASKED || !C::has(OPTIMISTIC_MAXIMUM)) {
            if (MASKED) mask(n * C::BLOCK_N);
            grew = softmax_exact<false>();
        } else if (!softmax_optimistic()) {
            ptx::wgmma_fence(r_s);
            issue_qk();  // the keys are still there
            ptx::wgmma_wait<0>(r_s, r_out, r_p);
            grew = softmax_exact<true>();
        }
        release(smem.k_empty, k);
        if (n > 0) wait_for_keys();
        ptx::wgmma_wait<0>(r_out, r_p);
        release(smem.v_empty, v);
        if (MASKED && is_first) write_out();
        else if (grew) scale_rows(r_out, rescale);
        pack_pairs<Element>(r_p, r_s);
    }

    // The sums of the tile that ends are complete; those of the next one begin.
    __device__ __forceinline__ void close_rows() {
        const Tile& tile = smem.tile[ended];
        #pragma unroll
        for (int r = 0; r < 2; ++r) {
            float sum = row_sum[r];
            sum += __shfl_xor_sync(0xffffffff, sum, 1);
            sum += __shfl_xor_sync(0xffffffff, sum, 2);
            inverse[r] = sum == 0.0f ? 0.0f : 1.0f / sum;  // a row that sees no key gives 0
            const int m = tile.m_start + 64 * warpgroup + 16 * warp + lane / 4 + 8 * r;
            if (g_lse && lane % 4 == 0 && m < p.seqlen_q)
                g_lse[(long long)(tile.batch * p.num_heads + tile.head) * p.seqlen_q + m] =
                    (row_max[r] * scale + log2f(sum)) * 0.693147180559945f;
            row_max[r] = minus_infinity();
            row_sum[r] = 0.0f;
        }
    }

    // The output takes the place of the queries of this warpgroup, which only it reads and no WGMMA reads any more.
    __device__ __forceinline__ void write_out() {
        write_rows(smem.q[ended], 64 * warpgroup + 16 * warp, r_out, inverse);
        ptx::fence_proxy_async();  // TMA shall see what was just written
        __syncwarp();
        if (lane == 0) ptx::mbar_arrive(&smem.out_full[ended]);
        #pragma unroll
        for (int i = 0; i < O_COUNT; ++i) r_out[i] = 0.0f;
    }

    __device__ __forceinline__ void begin(int n) {
        wait_for_keys();
        ptx::wgmma_fence(r_s);
        issue_qk();
        ptx::wgmma_wait<0>(r_s);
        mask(n * C::BLOCK_N);
        softmax_exact<false>();
        release(smem.k_empty, k);
        if (n > 0) wait_for_keys();
        pack_pairs<Element>(r_p, r_s);
    }

    __device__ __forceinline__ void end(bool product_is_missing) {
        if (product_is_missing) {
            ptx::mbar_wait(&smem.v_full[v.stage], v.phase);
            ptx::wgmma_fence(r_out, r_p);
            issue_pv();
            ptx::wgmma_wait<0>(r_out, r_p);
            release(smem.v_empty, v);
        }
        close_rows();
        write_out();
    }

    // Wait for a tile; m_start is negative if there is none.
    __device__ __forceinline__ Work next_tile() {
        ptx::mbar_wait(&smem.q_full[q.stage], q.phase);
        m_start = uniform(smem.tile[q.stage].m_start);
        if (m_start < 0) return {-1, 0, 0};
        return work_of<C>(uniform(smem.tile[q.stage].num_keys), m_start + 64 * warpgroup, C::has(PEELING), p);
    }

    __device__ __forceinline__ void run() {
        bool is_open = false, product_is_missing = false;  // a tile whose output has not been written; what it lacks
        while (true) {
            const Work work = next_tile();
            bool joins = C::STARTS_EARLY && product_is_missing && work.last >= 0 && work.skipped <= C::STAGES;
            int n = work.last;
            if (joins) {
                skip(work.skipped, smem.k_full, smem.k_empty, k);
                wait_for_keys();
            } else {
                if (is_open) end(product_is_missing);
                if (m_start < 0) return;
                for (int i = 0; i < work.skipped; ++i) {
                    skip(1, smem.k_full, smem.k_empty, k);
                    skip(1, smem.v_full, smem.v_empty, v);
                }
                product_is_missing = n >= 0;
                if (n >= 0) begin(n--);
            }
            for (; n >= work.unmasked || joins; --n) {
                step<true>(n, joins);
                if (joins) skip(work.skipped, smem.v_full, smem.v_empty, v);
                joins = false;
            }
            for (; n >= 0; --n) step<false>(n, false);
            is_open = C::STARTS_EARLY;
            ended = q.stage;
            q.next();
            if (!C::STARTS_EARLY) end(product_is_missing);
            k = {uniform(k.stage), uniform(k.phase)};
            v = {uniform(v.stage), uniform(v.phase)};
        }
    }
};

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) attention_overlap_kernel(
    const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
    const __grid_constant__ CUtensorMap map_v, const __grid_constant__ CUtensorMap map_out,  // boxes: one panel of a tile
    float* g_lse,               // [batch, num_heads, seqlen_q], natural log, contiguous; or null
    unsigned int* g_next_tile,  // 0 before and after the launch
    int batch, int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int heads_per_group, float softmax_scale_log2) {
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const Problem p = {batch, num_heads, num_heads_k, seqlen_q, seqlen_k, heads_per_group};
    if (threadIdx.x == 0) init_barriers(smem);
    __syncthreads();  // no thread may use a barrier before it is initialised
    if (threadIdx.x < 128) {
        ptx::reg_dealloc<C::PRODUCER_REGISTERS>();
        const int warp = threadIdx.x / 32;
        if (warp == 0 && ptx::elect_one()) produce(smem, &map_q, &map_k, &map_v, g_next_tile, p);
        if (warp == 1 && ptx::elect_one()) store(smem, &map_out);
    } else {
        ptx::reg_alloc<C::CONSUMER_REGISTERS>();
        Consumer<C>(smem, p, g_lse, softmax_scale_log2).run();
    }
}
