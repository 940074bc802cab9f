// Generated from nbs/47_overlap.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Step 47, overlap and persistence: attention for Hopper's tensor cores.
// A producer thread fills rings of tiles by TMA; consumer warpgroups own 64 queries each, compute scores and weights in
// registers, and keep both products in flight under the softmax; a third role writes outputs by TMA. The grid is
// persistent: a counter hands out tiles of queries, and parts of those that make no full round. Builds on steps 42 to 46.
#include "common/hopper_tiles.cuh"

// What makes this step fast, in the order in which the notebook adds it up.
enum Optimisation { PLAIN, OVERLAP, PEELING, PERSISTENCE, ORDER, RARE_RESCALING, OPTIMISTIC_MAXIMUM, EARLY_START };

template <class Element_, int HEAD_DIM_, int WARPGROUPS_, int BLOCK_N_, int STAGES_, int Q_STAGES_, Mask MASK_, Optimisation UP_TO,
          Tiles TILES = Tiles::WHOLE>
struct Config {
    using Element = Element_;
    static constexpr Mask MASK = MASK_;
    static constexpr int HEAD_DIM = HEAD_DIM_, WARPGROUPS = WARPGROUPS_, BLOCK_M = 64 * WARPGROUPS, BLOCK_N = BLOCK_N_;
    static constexpr int STAGES = STAGES_, Q_STAGES = Q_STAGES_;  // slots for tiles of K and as many of V, and of Q
    __device__ static constexpr bool has(Optimisation o) { return o <= UP_TO; }
    // The next tile's queries arrive while this one's output is still to be written: there must be a second slot.
    static constexpr bool STARTS_EARLY = has(EARLY_START) && Q_STAGES > 1;
    using QTile = PanelTile<Element, BLOCK_M, HEAD_DIM>;
    using KvTile = PanelTile<Element, BLOCK_N, HEAD_DIM>;
    static constexpr int THREADS = 128 * (WARPGROUPS + 1);
    // An SM's 65,536 registers are dealt out equally at launch; the producer then gives most of its own away.
    static constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8, PRODUCER_REGISTERS = WARPGROUPS == 2 ? 40 : 32;
    static constexpr int CONSUMER_REGISTERS =
        (LAUNCH_REGISTERS * (WARPGROUPS + 1) - PRODUCER_REGISTERS) / WARPGROUPS / 8 * 8;
    // A score may exceed the maximum in use by so many powers of two, and weights add up to so much, before another
    // maximum is taken: far from overflow in bf16 and float32; in fp16 a weight stays below 2^15.5.
    static constexpr bool IS_FP16 = ptx::same_type<Element, __half>;
    static constexpr float LARGEST_GROWTH = IS_FP16 ? 15.5f : 64.5f, LARGEST_SUM = IS_FP16 ? 32768.0f : 1.8446744e19f;
    static constexpr bool DIVIDES = TILES == Tiles::DIVIDED;  // those that make no full round
    static_assert(!DIVIDES || MASK == Mask::NONE && !STARTS_EARLY, "parts know their first and last key only");
    static_assert(WARPGROUPS >= 2 && BLOCK_N % 16 == 0, "an SM's registers; whole k steps of the second product");
};

template <class C>
struct SharedStorage {
    Ring<typename C::QTile, C::Q_STAGES> q;  // queries, later the output in their place
    Ring<typename C::KvTile, C::STAGES> k, v;
    uint64_t out_full[C::Q_STAGES];
    Tile tile[C::Q_STAGES];                          // whose queries are in the slot
    bool is_complete[C::Q_STAGES][C::WARPGROUPS];    // of a part: are its rows in the slot those of the whole tile?
    alignas(4) bool too_large[2][C::WARPGROUPS][4];  // a warp's verdict, for an even and an odd block
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

template <class C>
__device__ inline void init_barriers(SharedStorage<C>& smem) {
    smem.q.init(1);  // released by the storing thread
    smem.k.init(4 * C::WARPGROUPS), smem.v.init(4 * C::WARPGROUPS);
    for (uint64_t& barrier : smem.out_full) ptx::mbar_init(&barrier, 4 * C::WARPGROUPS);  // every consumer warp
    ptx::mbar_fence_init();
}

template <class C>
__device__ inline void produce(SharedStorage<C>& smem, const CUtensorMap* map_q, const CUtensorMap* map_k,
                               const CUtensorMap* map_v, unsigned int* g_next_tile, const Problem& p) {
    Slot<C::Q_STAGES> q;
    Slot<C::STAGES> k, v;
    const int num_items = ::num_items<C>(p);
    int behind = 0;
    auto announce = [&](const Tile& tile) {
        ptx::mbar_wait(&smem.out_full[q.stage], q.phase ^ 1);  // every consumer has read whose queries these were
        ptx::mbar_wait(&smem.q.empty[q.stage], q.phase ^ 1);   // and the output has left
        smem.tile[q.stage] = tile;
    };
    for (int index = blockIdx.x; index < num_items;) {
        Tile tile = item_at<C>(index, p, C::has(ORDER));
        if (tile.part < 0) flip<C>(tile, behind, p);  // parts have places in memory by warpgroups
        const int head_k = tile.head / (p.num_heads / p.num_heads_k);
        auto load_k = [&](int n) { smem.k.load(k, map_k, tile.first_key + n * C::BLOCK_N, head_k, tile.batch), k.next(); };
        auto load_v = [&](int n) { smem.v.load(v, map_v, tile.first_key + n * C::BLOCK_N, head_k, tile.batch), v.next(); };
        int n = (tile.num_keys + C::BLOCK_N - 1) / C::BLOCK_N - 1;
        if (C::Q_STAGES == 1 && n >= 0) load_k(n);  // there is a free slot for keys before there is one for queries
        announce(tile);
        load_queries<C>(smem.q, q, map_q, tile), q.next();
        if (C::Q_STAGES > 1 && n >= 0) load_k(n);
        for (; n > 0; --n) {
            load_k(n - 1);
            load_v(n);
        }
        index = C::has(PERSISTENCE) ? gridDim.x + atomicInc(g_next_tile, num_items - 1) : num_items;
        if (n == 0) load_v(0);
    }
    announce({0, 0, 0, -1});
    ptx::mbar_arrive(&smem.q.full[q.stage]);
}

template <class C>
__device__ inline void store(SharedStorage<C>& smem, const CUtensorMap* map_out) {
    for (Slot<C::Q_STAGES> q;; q.next()) {
        const typename C::QTile& s_out = smem.q.wait(q);
        const Tile tile = smem.tile[q.stage];
        if (tile.num_keys < 0) return;
        ptx::mbar_wait(&smem.out_full[q.stage], q.phase);
        for (int i = 0; i < C::WARPGROUPS; ++i) {
            if (tile.part >= 0 && !smem.is_complete[q.stage][i]) continue;
            if (first_row_of<C>(tile, i) < 0) continue;  // before the first query: unlike the end, nobody cuts it off
            #pragma unroll
            for (int column = 0; column < C::HEAD_DIM; column += C::QTile::PANEL)
                ptx::tma_store<4>(map_out, {column, first_row_of<C>(tile, i), tile.head, tile.batch},
                                  s_out.elements + column * C::BLOCK_M + 64 * i * C::QTile::PANEL);
        }
        ptx::tma_commit();
        ptx::tma_wait_read<0>();  // only then may the next queries overwrite the output
        ptx::mbar_arrive(&smem.q.empty[q.stage]);
    }
}

template <class C>
struct Consumer {
    SharedStorage<C>& smem;
    const Problem& p;
    float* const g_lse;
    const Parts parts;
    const float scale;  // softmax_scale * log2(e)
    const int warpgroup, warp, lane;
    Slot<C::Q_STAGES> q;
    Slot<C::STAGES> k, v;
    RowState<C> r;
    float rescale[2], inverse[2];             // what a new maximum asks of the output; 1 / sums of the tile that ends
    int parity = 0, ended = 0, first_row = 0, num_keys = 0;  // slot of the tile that ends; of the present one

    __device__ __forceinline__ Consumer(SharedStorage<C>& smem, const Problem& p, float* g_lse, const Parts& parts, float scale)
        : smem(smem), p(p), g_lse(g_lse), parts(parts), scale(scale), warpgroup(uniform(threadIdx.x / 128) - 1),
          warp(uniform(threadIdx.x / 32 % 4)), lane(threadIdx.x % 32) {}

    __device__ __forceinline__ void mask(int n) {
        const int n_start = n * C::BLOCK_N, keys = (C::DIVIDES ? num_keys : p.seqlen_k) - n_start;
        const int first = first_row + p.seqlen_k - p.seqlen_q;  // the last key that the first row sees
        if (C::has(PEELING) && C::MASK == Mask::NONE && keys >= C::BLOCK_N) return;
        mask_scores<C>(r, C::MASK == Mask::CAUSAL ? first + 1 - n_start : C::BLOCK_N, keys);
    }

    // Scores become weights under `shift`, a power of two; returns their sum over this thread's columns.
    __device__ __forceinline__ float weigh(int h, float shift) {
        float sum[2] = {0.0f, 0.0f};
        #pragma unroll
        for (int i = 2 * h; i < C::BLOCK_N / 2; i += 4)
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                r.scores[i + j] = ptx::ex2(fmaf(r.scores[i + j], scale, -shift));
                sum[j] += r.scores[i + j];
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
        for (int h = 0; h < 2; ++h) {
            float a = r.scores[2 * h], b = r.scores[2 * h + 1];  // two chains, half as long
            #pragma unroll
            for (int i = 2 * h + 4; i < C::BLOCK_N / 2; i += 4) {
                a = fmaxf(a, r.scores[i]);
                b = fmaxf(b, r.scores[i + 1]);
            }
            a = quad_max(fmaxf(a, b));
            const bool take = (a - r.row_max[h]) * scale > LIMIT;  // not if both are -inf: no key yet
            new_max[h] = take ? a : r.row_max[h];
            grew |= take;
        }
        grew = __any_sync(0xffffffff, grew);
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float base = new_max[h] == minus_infinity() ? 0.0f : new_max[h];  // no key yet: 2^(-inf - 0) = 0
            if (grew) {
                rescale[h] = ptx::ex2((r.row_max[h] - base) * scale);  // exactly 1 for a row that keeps its maximum
                r.row_sum[h] *= rescale[h];
            }
            r.row_max[h] = new_max[h];
            r.row_sum[h] += weigh(h, base * scale);
        }
        return grew;
    }

    // Returns false, in all threads of the warpgroup, if the scores are lost and have to be computed again.
    __device__ __forceinline__ bool softmax_optimistic() {
        float sum[2];
        #pragma unroll
        for (int h = 0; h < 2; ++h) sum[h] = weigh(h, r.row_max[h] * scale);
        const bool fits = sum[0] <= C::LARGEST_SUM && sum[1] <= C::LARGEST_SUM;
        const bool too_large = __any_sync(0xffffffff, !fits);
        if (lane == 0) smem.too_large[parity][warpgroup][warp] = too_large;
        ptx::bar_sync(1 + warpgroup, 128);  // all four verdicts are written before a warp reads them
        const uint32_t verdicts = *reinterpret_cast<const uint32_t*>(smem.too_large[parity][warpgroup]);
        parity ^= 1;
        if (verdicts) return false;
        r.row_sum[0] += sum[0];
        r.row_sum[1] += sum[1];
        return true;
    }

    // The scores of block n, together with the product of the weights at hand: those of block n + 1, or, if this is the
    // first block of a tile, the last ones of the tile before, whose output then leaves. The keys have arrived.
    template <bool MASKED>
    __device__ __forceinline__ void step(int n, bool is_first) {
        ptx::wgmma_fence(r.scores, r.out, r.weights);
        start_qk<C>(r, smem.q.tiles[q.stage], smem.k.tiles[k.stage], warpgroup);
        smem.v.wait(v);
        ptx::wgmma_fence(r.out, r.weights);
        start_pv<C>(r, smem.v.tiles[v.stage]);
        if (MASKED && is_first) close_rows();
        if constexpr (C::has(OVERLAP)) ptx::wgmma_wait<1>(r.scores);
        else ptx::wgmma_wait<0>(r.scores, r.out, r.weights);
        bool grew = false;
        if constexpr (MASKED || !C::has(OPTIMISTIC_MAXIMUM)) {
            if (MASKED) mask(n);
            grew = softmax_exact<false>();
        } else if (!softmax_optimistic()) {
            ptx::wgmma_fence(r.scores);
            start_qk<C>(r, smem.q.tiles[q.stage], smem.k.tiles[k.stage], warpgroup);  // the keys are still there
            ptx::wgmma_wait<0>(r.scores, r.out, r.weights);
            grew = softmax_exact<true>();
        }
        smem.k.release(k), k.next();
        if (n > 0) smem.k.wait(k);
        ptx::wgmma_wait<0>(r.out, r.weights);
        smem.v.release(v), v.next();
        if (MASKED && is_first) write_out();
        else if (grew) rescale_out(r, rescale);
        round_weights(r);
    }

    // The sums of the tile that ends are complete; those of the next one begin. If it is a part, it is left for others, and
    // the warpgroup that comes last joins them: only its rows in the slot are those of the output.
    __device__ __forceinline__ void close_rows() {
        const Tile tile = read_tile<C>(smem.tile[ended]);
        float log2_sum[2];
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float sum = quad_sum(r.row_sum[h]);
            inverse[h] = sum == 0.0f ? 0.0f : 1.0f / sum;  // a row that sees no key gives 0
            log2_sum[h] = r.row_max[h] * scale + log2f(sum);
            r.row_max[h] = minus_infinity(), r.row_sum[h] = 0.0f;
        }
        if (tile.part >= 0) {
            if (!leave_part(r, inverse, log2_sum, parts, tile.part, p.parts, warpgroup, smem.is_complete[ended][warpgroup])) return;
            join_parts(r, inverse, log2_sum, parts, tile.part, p.parts, warpgroup);
        }
        #pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int m = first_row_of<C>(tile, warpgroup) + 16 * warp + lane / 4 + 8 * h;
            if (g_lse && lane % 4 == 0 && m >= 0 && m < p.seqlen_q)
                g_lse[(long long)(tile.batch * p.num_heads + tile.head) * p.seqlen_q + m] = log2_sum[h] * LN_2;
        }
    }

    // The output takes the place of the queries of this warpgroup, which only it reads and no WGMMA reads any more.
    __device__ __forceinline__ void write_out() {
        typename C::QTile& s_out = smem.q.tiles[ended];
        const int row = 64 * warpgroup + 16 * warp + lane % 16;
        #pragma unroll
        for (int i = 0; i < C::HEAD_DIM / 2; i += 8) {  // 16 columns
            uint32_t pairs[4];
            #pragma unroll
            for (int j = 0; j < 4; ++j)
                pairs[j] = ptx::pack<typename C::Element>(r.out[i + 2 * j] * inverse[j % 2], r.out[i + 2 * j + 1] * inverse[j % 2]);
            ptx::stmatrix_x4(s_out.elements + C::QTile::offset(row, i / 4 + lane / 16), pairs);
        }
        ptx::fence_proxy_async();  // TMA shall see what was just written
        __syncwarp();  // all lanes have written; lane 0 arrives for them
        if (lane == 0) ptx::mbar_arrive(&smem.out_full[ended]);
        #pragma unroll
        for (int i = 0; i < C::HEAD_DIM / 2; ++i) r.out[i] = 0.0f;
    }

    __device__ __forceinline__ void begin(int n) {
        smem.k.wait(k);
        ptx::wgmma_fence(r.scores);
        start_qk<C>(r, smem.q.tiles[q.stage], smem.k.tiles[k.stage], warpgroup);
        ptx::wgmma_wait<0>(r.scores);
        mask(n);
        softmax_exact<false>();
        smem.k.release(k), k.next();
        if (n > 0) smem.k.wait(k);
        round_weights(r);
    }

    __device__ __forceinline__ void end(bool product_is_missing) {
        if (product_is_missing) {
            smem.v.wait(v);
            ptx::wgmma_fence(r.out, r.weights);
            start_pv<C>(r, smem.v.tiles[v.stage]);
            ptx::wgmma_wait<0>(r.out, r.weights);
            smem.v.release(v), v.next();
        }
        close_rows();
        write_out();
    }

    __device__ __forceinline__ void run() {
        while (true) {
            smem.q.wait(q);
            const Tile tile = read_tile<C>(smem.tile[q.stage]);
            if (tile.num_keys < 0) return;
            first_row = first_row_of<C>(tile, warpgroup), num_keys = tile.num_keys;
            const Work work = work_of<C>(num_keys, first_row, C::has(PEELING), p);
            for (int i = 0; i < work.skipped; ++i) {
                skip(1, smem.k, k);
                skip(1, smem.v, v);
            }
            if (work.last >= 0) {
                begin(work.last);
                int n = work.last - 1;
                for (; n >= work.unmasked; --n) step<true>(n, false);
                for (; n >= 0; --n) step<false>(n, false);
            }
            ended = q.stage;
            end(work.last >= 0);
            q.next();
        }
    }

    __device__ __forceinline__ void run_without_seams() {
        bool is_open = false, product_is_missing = false;  // a tile whose output has not been written; what it lacks
        for (;; q.next()) {
            smem.q.wait(q);
            const Tile tile = read_tile<C>(smem.tile[q.stage]);
            first_row = first_row_of<C>(tile, warpgroup);
            const Work work = work_of<C>(tile.num_keys, first_row, C::has(PEELING), p);
            bool joins = tile.num_keys >= 0 && product_is_missing && work.last >= 0 && work.skipped <= C::STAGES;
            int n = work.last;
            if (joins) {
                skip(work.skipped, smem.k, k);
                smem.k.wait(k);
            } else {
                if (is_open) end(product_is_missing);
                if (tile.num_keys < 0) return;
                for (int i = 0; i < work.skipped; ++i) {
                    skip(1, smem.k, k);
                    skip(1, smem.v, v);
                }
                product_is_missing = n >= 0;
                if (n >= 0) begin(n--);
            }
            for (; n >= work.unmasked || joins; --n) {
                step<true>(n, joins);
                if (joins) skip(work.skipped, smem.v, v);
                joins = false;
            }
            for (; n >= 0; --n) step<false>(n, false);
            is_open = true;
            ended = q.stage;
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
    float* g_parts,             // room for parts of tiles, see Parts; or null
    unsigned int* g_next_tile,  // and the arrivals of Parts behind it: 0 before and after the launch
    int batch, int num_heads, int num_heads_k, int seqlen_q, int seqlen_k, int heads_per_group, int whole_tiles, int parts,
    float softmax_scale_log2) {
    SharedStorage<C>& smem = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    const Problem p = {batch, num_heads, num_heads_k, seqlen_q, seqlen_k, heads_per_group, whole_tiles, parts};
    if (threadIdx.x == 0) init_barriers(smem);
    __syncthreads();  // no thread may use a barrier before it is initialised
    if (threadIdx.x < 128) {
        ptx::reg_dealloc<C::PRODUCER_REGISTERS>();
        if (threadIdx.x / 32 == 0 && ptx::elect_one()) produce(smem, &map_q, &map_k, &map_v, g_next_tile, p);
        if (threadIdx.x / 32 == 1 && ptx::elect_one()) store(smem, &map_out);
    } else {
        ptx::reg_alloc<C::CONSUMER_REGISTERS>();
        Consumer<C> consumer(smem, p, g_lse, {reinterpret_cast<float4*>(g_parts), g_next_tile + 1}, softmax_scale_log2);
        if constexpr (C::STARTS_EARLY) consumer.run_without_seams();
        else consumer.run();
    }
}
