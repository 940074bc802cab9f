// Generated from nbs/62_dispatch.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Dispatch: (token, choice) pairs sorted by expert, stably.
// count_kernel, place_kernel: a counting sort over the few possible keys. A grid of one block needs no count_kernel.
// radix_count_kernel, radix_place_kernel, offsets_kernel: the same by a radix sort with digits of five bits.
// Pairs are dropped whose expert does not exist, or has taken `capacity` earlier ones.
#include "common/ptx/basic.h"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int MAX_EXPERTS = THREADS;  // one thread an expert
constexpr unsigned ALL = ~0u;         // lanes

// The pairs a block, or a warp of it, walks through in order.
struct Range {
    int begin, end;
};

__device__ Range part_of(Range whole, int part, int parts) {
    const int length = (whole.end - whole.begin + parts - 1) / parts;
    const int begin = min(whole.begin + part * length, whole.end);
    return {begin, min(begin + length, whole.end)};
}

// All that earlier kernels have written can be read.
__device__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    ptx::griddep_wait();
#endif
}

// What follows may start; it waits before it reads.
__device__ void start_successor() {
#if __CUDA_ARCH__ >= 900
    ptx::griddep_launch_dependents();
#endif
}

__global__ void __launch_bounds__(THREADS) count_kernel(const int* topk_ids, int* counts, int num_pairs,
                                                        int num_experts) {
    __shared__ int s_count[MAX_EXPERTS];
    s_count[threadIdx.x] = 0;
    wait_for_predecessor();  // for the ids; so place_kernel finds them, too, as soon as it starts
    start_successor();
    __syncthreads();  // the counters are zero
    const Range range = part_of({0, num_pairs}, blockIdx.x, gridDim.x);
    for (int pair = range.begin + threadIdx.x; pair < range.end; pair += THREADS) {
        const int expert = topk_ids[pair];
        if (0 <= expert && expert < num_experts) atomicAdd(&s_count[expert], 1);
    }
    __syncthreads();  // all pairs are counted
    if (threadIdx.x < num_experts) counts[blockIdx.x * num_experts + threadIdx.x] = s_count[threadIdx.x];
}

// Sums of the threads before this one. s_sum: one element for each warp.
__device__ int2 exclusive_scan(int2 value, int2* s_sum) {
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    int2 sum = value;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int x = __shfl_up_sync(ALL, sum.x, distance), y = __shfl_up_sync(ALL, sum.y, distance);
        if (lane_idx >= distance) sum = {sum.x + x, sum.y + y};
    }
    if (lane_idx == 31) s_sum[warp_idx] = sum;
    __syncthreads();  // every warp's total is there
    int2 before = {sum.x - value.x, sum.y - value.y};
    for (int warp = 0; warp < warp_idx; ++warp) before = {before.x + s_sum[warp].x, before.y + s_sum[warp].y};
    return before;
}

// Offsets of the experts and of their tiles, from how many pairs thread `expert` keeps. Block 0 writes them.
__device__ int scan_experts(int kept, int* expert_offsets, int* block_offsets, int num_experts, int block_tokens, int2* s_sum) {
    const int expert = threadIdx.x, blocks = (kept + block_tokens - 1) / block_tokens;
    const int2 start = exclusive_scan({kept, blocks}, s_sum);
    if (blockIdx.x == 0 && expert <= num_experts) {
        expert_offsets[expert] = start.x;
        block_offsets[expert] = start.y;
        if (num_experts == MAX_EXPERTS && expert == MAX_EXPERTS - 1) {  // there is no thread 512
            expert_offsets[num_experts] = start.x + kept;
            block_offsets[num_experts] = start.y + blocks;
        }
    }
    return start.x;
}

struct SharedStorage {
    int next[WARPS][MAX_EXPERTS];  // how many pairs of an expert a warp has; then the slot of its next one
    int end[MAX_EXPERTS];          // where the next expert begins: a pair that would stand there finds its expert full
    int2 sum[WARPS];
};

__device__ void count_by_warp(SharedStorage& s, const int* topk_ids, Range range, int num_experts) {
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    for (int expert = lane_idx; expert < num_experts; expert += 32) s.next[warp_idx][expert] = 0;
    __syncwarp();  // the warp's counters are zero
    for (int pair = range.begin + lane_idx; pair < range.end; pair += 32) {
        const int id = topk_ids[pair];
        if (0 <= id && id < num_experts) atomicAdd(&s.next[warp_idx][id], 1);
    }
    __syncthreads();  // counters of all warps are final
}

// Thread `expert` replaces each warp's counter by the sum of the counters of warps before it; returns the block's sum.
__device__ int add_up_warps(SharedStorage& s, int expert) {
    int sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        const int count = s.next[warp][expert];
        s.next[warp][expert] = sum;
        sum += count;
    }
    return sum;
}

// Lanes with the same key >= 0 take consecutive places, in the order of the lanes, from the counter of that key.
__device__ int take_place(int* s_next, int key) {
    const unsigned peers = __match_any_sync(ALL, key);
    const int rank = __popc(peers & ((1u << threadIdx.x % 32) - 1));
    const int place = key < 0 ? -1 : s_next[key] + rank;
    __syncwarp();  // every lane has read its counter before the first of its peers moves it on
    if (key >= 0 && rank == 0) s_next[key] += __popc(peers);
    __syncwarp();  // and the counter is moved on before it is read again
    return place;
}

__global__ void __launch_bounds__(THREADS)
    place_kernel(const int* topk_ids, const int* counts, int* expert_offsets, int* block_offsets, int* permuted_idx,
                 int* inverse_idx, int* counters, int* dropped, int num_pairs, int num_experts, int block_tokens,
                 int capacity) {
    __shared__ SharedStorage s;
    const int expert = threadIdx.x, warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    const Range range = part_of(part_of({0, num_pairs}, blockIdx.x, gridDim.x), warp_idx, WARPS);
    if (gridDim.x == 1) wait_for_predecessor();  // else count_kernel has done so for the ids
    count_by_warp(s, topk_ids, range, num_experts);
    int total = expert < num_experts ? add_up_warps(s, expert) : 0, before = 0;
    wait_for_predecessor();  // for the counts of all blocks; and nothing is written above
    start_successor();
    if (gridDim.x > 1 && expert < num_experts) {
        total = 0;
#pragma unroll 32
        for (int block = 0; block < gridDim.x; ++block) {
            const int count = counts[block * num_experts + expert];
            total += count;
            before += block < blockIdx.x ? count : 0;
        }
    }
    const int kept = min(total, capacity);
    const int start = scan_experts(kept, expert_offsets, block_offsets, num_experts, block_tokens, s.sum);
    s.end[expert] = start + kept;
    if (expert < num_experts)
        for (int warp = 0; warp < WARPS; ++warp) s.next[warp][expert] += start + before;
    if (blockIdx.x == 0 && expert < num_experts) dropped[expert] = total - kept;
    if (blockIdx.x == 0 && expert < 2) counters[expert] = 0;
    __syncthreads();  // first slots and ends of all experts are there

    for (int first = range.begin; first < range.end; first += 32) {
        const int pair = first + lane_idx;
        int id = pair < range.end ? topk_ids[pair] : -1;
        if (id >= num_experts || id < 0) id = -1;
        int slot = take_place(s.next[warp_idx], id);
        if (id >= 0 && slot >= s.end[id]) slot = -1;  // its expert is full
        if (pair < range.end) inverse_idx[pair] = slot;
        if (slot >= 0) permuted_idx[slot] = pair;
    }
}

constexpr int DIGIT_BITS = 5, DIGITS = 1 << DIGIT_BITS;

// The first pass reads ids, later ones the keys that the pass before has moved.
__device__ int key_of(const int* keys, int i, int num_experts) {
    const int id = keys[i];
    return id < 0 || id > num_experts ? num_experts : id;
}

__global__ void __launch_bounds__(THREADS) radix_count_kernel(const int* keys, int* counts, int num_pairs, int num_experts,
                                                              int shift) {
    __shared__ int s_count[DIGITS];
    if (threadIdx.x < DIGITS) s_count[threadIdx.x] = 0;
    __syncthreads();  // the counters are zero
    const Range range = part_of({0, num_pairs}, blockIdx.x, gridDim.x);
    for (int i = range.begin + threadIdx.x; i < range.end; i += THREADS)
        atomicAdd(&s_count[key_of(keys, i, num_experts) >> shift & (DIGITS - 1)], 1);
    __syncthreads();  // all keys are counted
    if (threadIdx.x < DIGITS) counts[blockIdx.x * DIGITS + threadIdx.x] = s_count[threadIdx.x];
}

// pairs_in null: the pairs are still in order.
__global__ void __launch_bounds__(THREADS)
    radix_place_kernel(const int* keys, const int* pairs_in, const int* counts, int* keys_out, int* pairs_out, int num_pairs,
                       int num_experts, int shift) {
    __shared__ int s_next[WARPS][DIGITS], s_start[DIGITS];
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    const Range range = part_of(part_of({0, num_pairs}, blockIdx.x, gridDim.x), warp_idx, WARPS);
    s_next[warp_idx][lane_idx] = 0;
    __syncwarp();  // the warp's counters are zero
    for (int i = range.begin + lane_idx; i < range.end; i += 32)
        atomicAdd(&s_next[warp_idx][key_of(keys, i, num_experts) >> shift & (DIGITS - 1)], 1);
    if (warp_idx == 0) {
        int total = 0, before = 0;
        for (int block = 0; block < gridDim.x; ++block) {
            const int count = counts[block * DIGITS + lane_idx];
            total += count;
            before += block < blockIdx.x ? count : 0;
        }
        int sum = total;
        for (int distance = 1; distance < 32; distance *= 2) {
            const int x = __shfl_up_sync(ALL, sum, distance);
            if (lane_idx >= distance) sum += x;
        }
        s_start[lane_idx] = sum - total + before;
    }
    __syncthreads();  // counters of all warps and the block's first places are there
    int earlier = s_start[lane_idx];
    for (int warp = 0; warp < warp_idx; ++warp) earlier += s_next[warp][lane_idx];
    __syncthreads();  // all warps have read the counters
    s_next[warp_idx][lane_idx] = earlier;
    __syncwarp();  // from here on the warp's counters are places
    for (int first = range.begin; first < range.end; first += 32) {
        const int i = first + lane_idx;
        const int key = i < range.end ? key_of(keys, i, num_experts) : 0;
        const int place = take_place(s_next[warp_idx], i < range.end ? key >> shift & (DIGITS - 1) : -1);
        if (i < range.end) {
            keys_out[place] = key;
            pairs_out[place] = pairs_in ? pairs_in[i] : i;
        }
    }
}

// How many keys are smaller than `key`, in sorted keys.
__device__ int keys_below(const int* keys, int num_pairs, int key) {
    int low = 0, high = num_pairs;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (keys[middle] < key) low = middle + 1;
        else high = middle;
    }
    return low;
}

__global__ void __launch_bounds__(THREADS)
    offsets_kernel(const int* keys, const int* pairs, int* expert_offsets, int* block_offsets, int* inverse_idx, int* counters,
                   int* dropped, int num_pairs, int num_experts, int block_tokens) {
    __shared__ SharedStorage s;
    for (int slot = blockIdx.x * THREADS + threadIdx.x; slot < num_pairs; slot += gridDim.x * THREADS)
        inverse_idx[pairs[slot]] = keys[slot] < num_experts ? slot : -1;
    if (blockIdx.x > 0) return;
    const int expert = threadIdx.x;
    int kept = 0;
    if (expert < num_experts) kept = keys_below(keys, num_pairs, expert + 1) - keys_below(keys, num_pairs, expert);
    scan_experts(kept, expert_offsets, block_offsets, num_experts, block_tokens, s.sum);
    if (expert < num_experts) dropped[expert] = 0;
    if (expert < 2) counters[expert] = 0;
}
