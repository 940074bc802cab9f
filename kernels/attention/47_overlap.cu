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
#include "common/ptx/convert.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/register.h"
#include "common/ptx/wgmma.h"

enum class Maximum { EXACT, OPTIMISTIC };

template <class Element_, int HEAD_DIM_, int WARPGROUPS_, int BLOCK_N_, int STAGES_, int Q_STAGES_, Mask MASK_, Maximum MAXIMUM_>
struct Config {
    using Element = Element_;
    static constexpr int HEAD_DIM = HEAD_DIM_, WARPGROUPS = WARPGROUPS_, BLOCK_M = 64 * WARPGROUPS, BLOCK_N = BLOCK_N_;
    static constexpr int STAGES = STAGES_, Q_STAGES = Q_STAGES_;  // slots for tiles of K and as many of V, and of Q
    static constexpr Mask MASK = MASK_;
    static constexpr Maximum MAXIMUM = MAXIMUM_;
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
    for (int index = blockIdx.x; index < num_tiles;) {
        const Tile tile = tile_at<C>(index, p);
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
        ptx::mbar_wait(&smem.q_empty[q.stage], q.phase ^ 1);
        smem.tile[q.stage] = tile;
        load_tile(smem.q[q.stage], map_q, &smem.q_full[q.stage], tile.m_start, tile.head, tile.batch);
        q.next();
        if (C::Q_STAGES > 1 && n >= 0) load_k(n);
        for (; n > 0; --n) {
            load_k(n - 1);
            load_v(n);
        }
        index = gridDim.x + atomicInc(g_next_tile, num_tiles - 1);
        if (n == 0) load_v(0);
    }
    ptx::mbar_wait(&smem.q_empty[q.stage], q.phase ^ 1);
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
    const float scale;  // softmax_scale * log2(e)
    const int warpgroup, warp, lane;
    Slot<C::Q_STAGES> q;
    Slot<C::STAGES> k, v;
    float r_s[S_COUNT], r_out[O_COUNT];        // scores, then weights; the output before its division by row_sum
    uint32_t r_p[P_COUNT];                     // weights in pairs, as the second product reads them
    float row_max[2], row_sum[2], rescale[2];  // row_sum: of this thread's columns only
    int parity = 0;

    // The warpgroup's index comes from one lane, which tells the compiler that it is the same in all of them.
    __device__ __forceinline__ Consumer(SharedStorage<C>& smem, const Problem& p, float scale)
        : smem(smem), p(p), scale(scale), warpgroup(__shfl_sync(0xffffffff, threadIdx.x / 128, 0) - 1),
          warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}

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

    __device__ __forceinline__ void mask(int n_start, int m_start) {
        #pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int m = m_start + 64 * warpgroup + 16 * warp + lane / 4 + 8 * r;
            const int visible = visible_keys<C>(m, p) - n_start - 2 * (lane % 4);
            #pragma unroll
            for (int i = 2 * r; i < S_COUNT; i += 4) {
                if (2 * i - 4 * r >= visible) r_s[i] = minus_infinity();
                if (2 * i - 4 * r + 1 >= visible) r_s[i + 1] = minus_infinity();
            }
        }
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
        constexpr float LIMIT = RETRY ? C::LARGEST_GROWTH : 8.0f;
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

    __device__ __forceinline__ void rescale_out() {
        #pragma unroll
        for (int i = 0; i < O_COUNT; ++i) r_out[i] *= rescale[i / 2 % 2];
    }

    __device__ __forceinline__ void pack_weights() {
        #pragma unroll
        for (int i = 0; i < P_COUNT; ++i) r_p[i] = ptx::pack<Element>(r_s[2 * i], r_s[2 * i + 1]);
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

    // On entry the keys of block n have arrived and r_p holds the weights of block n + 1.
    template <bool MASKED>
    __device__ __forceinline__ void step(int n, int m_start) {
        ptx::wgmma_fence(r_s, r_out, r_p);
        issue_qk();
        ptx::mbar_wait(&smem.v_full[v.stage], v.phase);
        ptx::wgmma_fence(r_out, r_p);
        issue_pv();
        ptx::wgmma_wait<1>(r_s);
        bool grew = false;
        if constexpr (MASKED || C::MAXIMUM == Maximum::EXACT) {
            if (MASKED) mask(n * C::BLOCK_N, m_start);
            grew = softmax_exact<false>();
        } else if (!softmax_optimistic()) {
            ptx::wgmma_fence(r_s);
            issue_qk();  // the keys are still there
            ptx::wgmma_wait<0>(r_s, r_out, r_p);
            grew = softmax_exact<true>();
        }
        release(smem.k_empty, k);
        if (n > 0) ptx::mbar_wait(&smem.k_full[k.stage], k.phase);
        ptx::wgmma_wait<0>(r_out, r_p);
        release(smem.v_empty, v);
        if (grew) rescale_out();
        pack_weights();
    }

    // Blocks that only later warpgroups see. Full barriers are waited for: a slot is released once in each lap.
    __device__ __forceinline__ void skip(int count) {
        for (; count > 0; --count) {
            ptx::mbar_wait(&smem.k_full[k.stage], k.phase);
            release(smem.k_empty, k);
            ptx::mbar_wait(&smem.v_full[v.stage], v.phase);
            release(smem.v_empty, v);
        }
    }

    __device__ __forceinline__ void attend(const Tile& tile) {
        const int m_start = tile.m_start, first_row = m_start + 64 * warpgroup;
        const int num_keys = max(0, min(tile.num_keys, visible_keys<C>(first_row + 63, p)));
        const int num_blocks = (num_keys + C::BLOCK_N - 1) / C::BLOCK_N;
        const int num_full = max(0, visible_keys<C>(first_row, p)) / C::BLOCK_N;  // blocks that need no mask
        #pragma unroll
        for (int i = 0; i < O_COUNT; ++i) r_out[i] = 0.0f;
        row_max[0] = row_max[1] = minus_infinity();
        row_sum[0] = row_sum[1] = 0.0f;
        skip((tile.num_keys + C::BLOCK_N - 1) / C::BLOCK_N - num_blocks);
        if (num_blocks == 0) return;
        int n = num_blocks - 1;
        ptx::mbar_wait(&smem.k_full[k.stage], k.phase);
        ptx::wgmma_fence(r_s);
        issue_qk();
        ptx::wgmma_wait<0>(r_s);
        if (n >= num_full) mask(n * C::BLOCK_N, m_start);
        softmax_exact<false>();
        release(smem.k_empty, k);
        if (n > 0) ptx::mbar_wait(&smem.k_full[k.stage], k.phase);
        pack_weights();
        for (--n; n >= num_full; --n) step<true>(n, m_start);
        for (; n >= 0; --n) step<false>(n, m_start);
        ptx::mbar_wait(&smem.v_full[v.stage], v.phase);
        ptx::wgmma_fence(r_out, r_p);
        issue_pv();
        ptx::wgmma_wait<0>(r_out, r_p);
        release(smem.v_empty, v);
    }

    // The output takes the place of the queries of this warpgroup, which only it reads and no WGMMA reads any more.
    __device__ __forceinline__ void finish(const Tile& tile, float* g_lse) {
        float inverse[2];
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
        }
        const int s_row = 64 * warpgroup + 16 * warp + lane % 16;
        #pragma unroll
        for (int i = 0; i < O_COUNT; i += 8) {  // 16 columns
            uint32_t r_pairs[4];
            #pragma unroll
            for (int j = 0; j < 4; ++j)
                r_pairs[j] = ptx::pack<Element>(r_out[i + 2 * j] * inverse[j % 2], r_out[i + 2 * j + 1] * inverse[j % 2]);
            const int chunk = i / 4 % 8 + lane / 16;
            ptx::stmatrix_x4(&smem.q[q.stage][i / 32][s_row][(chunk ^ s_row % 8) * 8], r_pairs);
        }
        ptx::fence_proxy_async();  // TMA shall see what was just written
        __syncwarp();
        if (lane == 0) ptx::mbar_arrive(&smem.out_full[q.stage]);
        q.next();
    }
};

template <class C>
__device__ inline void consume(SharedStorage<C>& smem, const Problem& p, float* g_lse, float softmax_scale_log2) {
    Consumer<C> consumer(smem, p, softmax_scale_log2);
    while (true) {
        ptx::mbar_wait(&smem.q_full[consumer.q.stage], consumer.q.phase);
        const Tile& tile = smem.tile[consumer.q.stage];  // read again where it is needed: registers are scarce
        if (tile.m_start < 0) return;
        consumer.attend(tile);
        consumer.finish(tile, g_lse);
    }
}

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
        consume(smem, p, g_lse, softmax_scale_log2);
    }
}
