// Generated from nbs/65_few_tokens.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Few tokens: both products of a layer of experts in two kernels, without a dispatch before or a combination after.
// gate_up_kernel: a block makes eight features of the rows of one expert. down_kernel: a block makes sixteen columns of
// the output, over all experts, and adds up each token's. Weights go from memory to registers, and from there to mma.sync.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/basic.h"
#include "common/ptx/convert.h"
#include "common/ptx/memory.h"
#include "common/ptx/mma.h"

constexpr int MAX_PAIRS = 32;  // a lane each
constexpr int ROWS = 16;       // of weights that one mma multiplies
constexpr int COLUMNS = 8;     // pairs that one mma takes
constexpr int STEP = 32;       // elements of a row that four lanes read at a time, 16 bytes each
constexpr unsigned ALL = ~0u;  // lanes

template <class Element_, int WARPS_, int BATCH_>
struct Config {
    using Element = Element_;
    static constexpr int WARPS = WARPS_, THREADS = 32 * WARPS;
    static constexpr int BATCH = BATCH_;         // steps whose loads are under way together
    static constexpr int CHUNK = BATCH * STEP;   // elements of a row
};

// Pairs that share an expert, up to COLUMNS of them.
struct Groups {
    int count;
    int expert[MAX_PAIRS];
    int pair[MAX_PAIRS][COLUMNS];  // -1: none
    int place[MAX_PAIRS];          // of a pair: COLUMNS * group + column; -1: no expert has its id
};

__device__ void find_groups(Groups& s, const int* topk_ids, int num_pairs, int num_experts) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        int id = lane < num_pairs ? topk_ids[lane] : -1;
        if (id < 0 || id >= num_experts) id = -1;
        const unsigned peers = __match_any_sync(ALL, id), up_to_me = (2u << lane) - 1;
        const int rank = __popc(peers & up_to_me) - 1;
        const bool leads = id >= 0 && rank % COLUMNS == 0;
        const unsigned leaders = __ballot_sync(ALL, leads);
        const int leader = 31 - __clz(peers & leaders & up_to_me);  // of this lane's group
        const int group = __popc(leaders & ((1u << (leader & 31)) - 1));
#pragma unroll
        for (int column = 0; column < COLUMNS; ++column) s.pair[lane][column] = -1;
        __syncwarp();  // no column has a pair
        if (id >= 0) s.pair[group][rank % COLUMNS] = lane;
        if (leads) s.expert[group] = id;
        s.place[lane] = id >= 0 ? COLUMNS * group + rank % COLUMNS : -1;
        if (lane == 0) s.count = __popc(leaders);
    }
    __syncthreads();  // the table is there
}

template <class C>
struct Batch {
    uint4 low[C::BATCH], high[C::BATCH];  // of weight rows g and g + 8, g = lane / 4
    uint4 x[C::BATCH];                    // of the row in column g
};

// Of chunk `chunk`; zero beyond the end of the rows.
template <class C>
__device__ void load_weights(Batch<C>& r, const typename C::Element* low, const typename C::Element* high, int chunk, int length) {
#pragma unroll
    for (int i = 0; i < C::BATCH; ++i) {
        const int at = chunk * C::CHUNK + i * STEP + threadIdx.x % 4 * 8;
        r.low[i] = at < length ? ptx::ld_nc_v4(low + at) : uint4{};
        r.high[i] = at < length ? ptx::ld_nc_v4(high + at) : uint4{};
    }
}

// x null: no pair in this column.
template <class C>
__device__ void load_x(Batch<C>& r, const typename C::Element* x, int chunk, int length) {
#pragma unroll
    for (int i = 0; i < C::BATCH; ++i) {
        const int at = chunk * C::CHUNK + i * STEP + threadIdx.x % 4 * 8;
        r.x[i] = x && at < length ? *reinterpret_cast<const uint4*>(x + at) : uint4{};
    }
}

template <class C>
__device__ void multiply(float (&acc)[4], const Batch<C>& r) {
#pragma unroll
    for (int i = 0; i < C::BATCH; ++i) {
        using Element = typename C::Element;
        ptx::mma_m16n8k16<Element>(acc, {r.low[i].x, r.high[i].x, r.low[i].y, r.high[i].y}, {r.x[i].x, r.x[i].y});
        ptx::mma_m16n8k16<Element>(acc, {r.low[i].z, r.high[i].z, r.low[i].w, r.high[i].w}, {r.x[i].z, r.x[i].w});
    }
}

// A warp's part of 16 rows times 8 columns.
__device__ void store_part(float (&s_part)[ROWS][COLUMNS], const float (&acc)[4]) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    *reinterpret_cast<float2*>(&s_part[row][column]) = {acc[0], acc[1]};
    *reinterpret_cast<float2*>(&s_part[row + 8][column]) = {acc[2], acc[3]};
}

__device__ float swiglu(float gate, float up) { return gate * ptx::rcp(1.f + ptx::ex2(gate * -1.44269504f)) * up; }

template <class C>
__global__ void __launch_bounds__(C::THREADS)
    gate_up_kernel(const typename C::Element* tokens, const typename C::Element* weights, const int* topk_ids,
                   typename C::Element* h,  // [num_pairs, inter]
                   int num_pairs, int num_experts, int top_k, int hidden, int inter) {
    __shared__ Groups groups;
    __shared__ __align__(16) float s_part[C::WARPS][ROWS][COLUMNS];
#if __CUDA_ARCH__ >= 900
    ptx::griddep_wait();  // for the ids and the tokens; so down_kernel finds the ids, too, as soon as it starts
    ptx::griddep_launch_dependents();
#endif
    find_groups(groups, topk_ids, num_pairs, num_experts);
    const int group = blockIdx.y, first = blockIdx.x * 8, warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    if (group >= groups.count) return;
    const long long expert = groups.expert[group];
    const int pair = groups.pair[group][lane_idx / 4];
    const auto* gate = weights + (2 * expert * inter + first + lane_idx / 4) * hidden;
    const auto* up = gate + (long long)inter * hidden;
    const auto* x = pair < 0 ? nullptr : tokens + (long long)(pair / top_k) * hidden;
    const int chunks = (hidden + C::CHUNK - 1) / C::CHUNK, end = chunks * (warp_idx + 1) / C::WARPS;
    int chunk = chunks * warp_idx / C::WARPS;
    float acc[4] = {};
    Batch<C> batch;
    const auto load = [&]() {
        if (chunk >= end) return;
        load_weights<C>(batch, gate, up, chunk, hidden);
        load_x<C>(batch, x, chunk, hidden);
    };
    for (load(); chunk < end; load()) {
        multiply<C>(acc, batch);
        ++chunk;
    }
    store_part(s_part[warp_idx], acc);
    __syncthreads();  // the parts of all warps are there
    if (warp_idx > 0 || pair < 0) return;
    const int feature = lane_idx % 4 * 2, column = lane_idx / 4;
    float sum[4] = {};  // gate, gate of the next feature, up, up of the next
    for (int warp = 0; warp < C::WARPS; ++warp)
        for (int i = 0; i < 4; ++i) sum[i] += s_part[warp][feature + i % 2 + i / 2 * 8][column];
    *reinterpret_cast<uint32_t*>(h + (long long)pair * inter + first + feature) =
        ptx::pack<typename C::Element>(swiglu(sum[0], sum[2]), swiglu(sum[1], sum[3]));
}

// Every token's weighted sum of two neighbouring columns, from the parts of all groups.
template <class C>
__device__ void combine(const Groups& groups, const float (&s_part)[MAX_PAIRS + C::WARPS][ROWS][COLUMNS], const float* topk_weights,
                        typename C::Element* out, int num_tokens, int top_k, int chunks, int columns, long long stride) {
    const int total = groups.count * chunks;
    for (int i = threadIdx.x; i < num_tokens * ROWS / 2; i += C::THREADS) {
        const int token = i / (ROWS / 2), row = i % (ROWS / 2) * 2;
        float sum[2] = {};
        for (int choice = 0; choice < top_k; ++choice) {
            const int place = groups.place[token * top_k + choice], group = place / COLUMNS, column = place % COLUMNS;
            if (place < 0) continue;
            float y[2] = {};
            for (int warp = 0; warp < C::WARPS; ++warp) {
                const int begin = max(group * chunks, total * warp / C::WARPS);
                if (begin >= min((group + 1) * chunks, total * (warp + 1) / C::WARPS)) continue;  // it has no part of this group
                y[0] += s_part[group + warp][row][column];
                y[1] += s_part[group + warp][row + 1][column];
            }
            const float weight = topk_weights[token * top_k + choice];
            sum[0] += weight * y[0];
            sum[1] += weight * y[1];
        }
        if (row < columns)
            *reinterpret_cast<uint32_t*>(out + token * stride + row) = ptx::pack<typename C::Element>(sum[0], sum[1]);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS)
    down_kernel(const typename C::Element* h, const typename C::Element* weights, const int* topk_ids, const float* topk_weights,
                typename C::Element* out, int num_pairs, int num_experts, int top_k, int hidden, int inter) {
    using Element = typename C::Element;
    __shared__ Groups groups;
    __shared__ __align__(16) float s_part[MAX_PAIRS + C::WARPS][ROWS][COLUMNS];  // of a group and a warp: at their sum
    find_groups(groups, topk_ids, num_pairs, num_experts);
    const int first = blockIdx.x * ROWS, warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    const int chunks = (inter + C::CHUNK - 1) / C::CHUNK, total = groups.count * chunks;
    const int begin = total * warp_idx / C::WARPS, end = total * (warp_idx + 1) / C::WARPS;
    const int low = min(first + lane_idx / 4, hidden - 1), high = min(first + lane_idx / 4 + 8, hidden - 1);
    int group = begin / chunks, chunk = begin % chunks;
    Batch<C> batch;
    const auto load = [&]() {
        const Element* expert = weights + (long long)groups.expert[group] * hidden * inter;
        load_weights<C>(batch, expert + (long long)low * inter, expert + (long long)high * inter, chunk, inter);
    };
    const auto load_h = [&]() {
        const int pair = groups.pair[group][lane_idx / 4];
        load_x<C>(batch, pair < 0 ? nullptr : h + (long long)pair * inter, chunk, inter);
    };
    if (begin < end) load();
#if __CUDA_ARCH__ >= 900
    ptx::griddep_wait();  // for h
#endif
    if (begin < end) load_h();
    float acc[4] = {};
    for (int at = begin; at < end;) {
        multiply<C>(acc, batch);
        const int part = group + warp_idx;
        if (++chunk == chunks) chunk = 0, ++group;
        if (++at < end) {
            load();
            load_h();
        }
        if (at == end || chunk == 0) {  // the warp's part of a group is complete
            store_part(s_part[part], acc);
            for (float& x : acc) x = 0.f;
        }
    }
    __syncthreads();  // all parts are there
    combine<C>(groups, s_part, topk_weights, out + first, num_pairs / top_k, top_k, chunks, hidden - first, hidden);
}
