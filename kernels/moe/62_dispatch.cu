// Generated from nbs/62_dispatch.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Dispatch: (token, choice) pairs sorted by expert, stably, by a counting sort over the few possible keys.
// count_kernel: one histogram for every chunk of pairs. place_kernel: offsets of the experts, and each pair's place.
// A grid of one block needs no count_kernel. Pairs whose expert does not exist are dropped.
#include "common/ptx/basic.h"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int MAX_EXPERTS = THREADS;  // one thread an expert

// The pairs a block, or a warp of it, walks through in order.
struct Range {
    int begin, end;
};

__device__ Range part_of(Range whole, int part, int parts) {
    const int length = (whole.end - whole.begin + parts - 1) / parts;
    const int begin = min(whole.begin + part * length, whole.end);
    return {begin, min(begin + length, whole.end)};
}

__global__ void __launch_bounds__(THREADS) count_kernel(const int* topk_ids, int* counts, int num_pairs,
                                                        int num_experts) {
    __shared__ int s_count[MAX_EXPERTS];
    s_count[threadIdx.x] = 0;
    __syncthreads();
    const Range range = part_of({0, num_pairs}, blockIdx.x, gridDim.x);
    for (int pair = range.begin + threadIdx.x; pair < range.end; pair += THREADS) {
        const int expert = topk_ids[pair];
        if (0 <= expert && expert < num_experts) atomicAdd(&s_count[expert], 1);
    }
    __syncthreads();
    if (threadIdx.x < num_experts) counts[blockIdx.x * num_experts + threadIdx.x] = s_count[threadIdx.x];
}

// Sums of the threads before this one. s_sum: one element for each warp.
__device__ int2 exclusive_scan(int2 value, int2* s_sum) {
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    int2 sum = value;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int x = __shfl_up_sync(~0u, sum.x, distance), y = __shfl_up_sync(~0u, sum.y, distance);
        if (lane_idx >= distance) sum = {sum.x + x, sum.y + y};
    }
    if (lane_idx == 31) s_sum[warp_idx] = sum;
    __syncthreads();
    int2 before = {sum.x - value.x, sum.y - value.y};
    for (int warp = 0; warp < warp_idx; ++warp) before = {before.x + s_sum[warp].x, before.y + s_sum[warp].y};
    return before;
}

struct SharedStorage {
    int next[WARPS][MAX_EXPERTS];  // how many pairs of an expert a warp has; then the slot of its next one
    int2 sum[WARPS];
};

__global__ void __launch_bounds__(THREADS)
    place_kernel(const int* topk_ids, const int* counts, int* expert_offsets, int* block_offsets, int* permuted_idx,
                 int* inverse_idx, int* counters, int num_pairs, int num_experts, int block_tokens) {
#if __CUDA_ARCH__ >= 900
    ptx::griddep_launch_dependents();  // what follows may start; it waits before it reads
#endif
    __shared__ SharedStorage s;
    const int expert = threadIdx.x, warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    const Range range = part_of(part_of({0, num_pairs}, blockIdx.x, gridDim.x), warp_idx, WARPS);
    for (int warp = 0; warp < WARPS; ++warp) s.next[warp][expert] = 0;
    __syncthreads();
    for (int pair = range.begin + lane_idx; pair < range.end; pair += 32) {
        const int id = topk_ids[pair];
        if (0 <= id && id < num_experts) atomicAdd(&s.next[warp_idx][id], 1);
    }
    __syncthreads();

    // Pairs of this expert: in this block's earlier warps, in all blocks, in earlier blocks.
    int in_block = 0, total = 0, before = 0;
    for (int warp = 0; warp < WARPS; ++warp) {
        const int count = s.next[warp][expert];
        s.next[warp][expert] = in_block;
        in_block += count;
    }
    if (gridDim.x == 1) total = in_block;
    if (gridDim.x > 1 && expert < num_experts) {
#pragma unroll 16
        for (int block = 0; block < gridDim.x; ++block) {
            const int count = counts[block * num_experts + expert];
            total += count;
            before += block < blockIdx.x ? count : 0;
        }

    }
    const int2 start = exclusive_scan({total, (total + block_tokens - 1) / block_tokens}, s.sum);
    for (int warp = 0; warp < WARPS; ++warp) s.next[warp][expert] += start.x + before;
    if (blockIdx.x == 0 && expert <= num_experts) {
        expert_offsets[expert] = start.x;
        block_offsets[expert] = start.y;
        if (num_experts == MAX_EXPERTS && expert == MAX_EXPERTS - 1) {
            expert_offsets[num_experts] = start.x + total;
            block_offsets[num_experts] = start.y + (total + block_tokens - 1) / block_tokens;
        }
        if (expert < 2) counters[expert] = 0;
    }
    __syncthreads();

    // Lanes with the same expert take consecutive slots, in the order of their pairs.
    for (int first = range.begin; first < range.end; first += 32) {
        const int pair = first + lane_idx;
        int id = pair < range.end ? topk_ids[pair] : -1;
        if (id >= num_experts) id = -1;
        const unsigned peers = __match_any_sync(~0u, id);
        const int rank = __popc(peers & ((1u << lane_idx) - 1));
        const int slot = id < 0 ? -1 : s.next[warp_idx][id] + rank;
        __syncwarp();  // every lane has read `next` before the first of its peers moves it on
        if (id >= 0 && rank == 0) s.next[warp_idx][id] += __popc(peers);
        __syncwarp();
        if (pair < range.end) inverse_idx[pair] = slot;
        if (slot >= 0) permuted_idx[slot] = pair;
    }
}
