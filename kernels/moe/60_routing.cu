// Generated from nbs/60_routing.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Routing: a warp ranks one token's experts and picks the best top_k, the lower id first among equals.
// route_kernel: logits -> topk_weights, topk_ids. balance_*_kernel: how evenly the experts are used.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/basic.h"
#include "common/ptx/convert.h"

enum class Choice { CHAMPIONS, SHUFFLES };

enum class Key { LOGIT, SCORE };  // what the choice goes by; SCORE allows for a bias and for groups

template <class Logit_, int PER_LANE_, Key KEY_ = Key::LOGIT, Choice CHOICE_ = Choice::CHAMPIONS>
struct Config {
    using Logit = Logit_;
    static constexpr int PER_LANE = PER_LANE_;    // neighbouring experts in a lane's share
    static constexpr Key KEY = KEY_;
    static constexpr Choice CHOICE = CHOICE_;
    static constexpr int EXPERTS = 32 * PER_LANE; // num_experts, or a little more
    static constexpr int WARPS = 4;               // tokens of a block
    static_assert(PER_LANE >= 1 && PER_LANE <= 16, "up to 512 experts");
};

template <class C>
struct SharedStorage {
    alignas(16) uint32_t rank[C::WARPS][C::EXPERTS];  // of a token's experts; 0: taken
    int chosen[C::WARPS][32];
};

constexpr float LOG2E = 1.44269504f;
constexpr unsigned ALL = ~0u;  // lanes

__device__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// Unsigned integers in the order of the floats. NaN ranks with -inf, -0 with 0; nothing ranks as low as 0: "taken".
__device__ uint32_t rank_of(float x) {
    const uint32_t bits = __float_as_uint(fmaxf(x + 0.f, minus_infinity()));  // fmaxf gives the number, not the NaN
    return bits ^ (uint32_t(int(bits) >> 31) | 0x80000000u);                  // negative: all bits flip; else the sign
}

__device__ float value_of(uint32_t rank) { return __uint_as_float(rank >> 31 ? rank ^ 0x80000000u : ~rank); }

// The largest of the warp's numbers; NaN counts as -inf.
__device__ float largest_of_warp(float x) { return value_of(__reduce_max_sync(ALL, rank_of(x))); }

// Whether this lane is the lowest of some: `lanes & -lanes` leaves the lowest set bit.
__device__ bool is_lowest_lane(unsigned lanes) { return 1u << threadIdx.x % 32 == (lanes & -lanes); }

__device__ float sum_over_warp(float x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL, x, distance);
    return x;
}

// score = 2^(logit log2(e) - shift) * scale
struct Softmax {
    float shift, scale;
    __device__ float score(float logit) const { return ptx::ex2(logit * LOG2E - shift) * scale; }
};

__device__ float sigmoid(float logit) { return ptx::rcp(1.f + ptx::ex2(-logit * LOG2E)); }

// Lanes hold the logits of experts lane, lane + 32, ..., and -inf behind the last.
template <class C>
__device__ Softmax softmax_of(const float (&logits)[C::PER_LANE]) {
    float largest = minus_infinity(), sum = 0.f;
    for (int i = 0; i < C::PER_LANE; ++i) largest = fmaxf(largest, logits[i]);  // skips NaN; the sum does not
    Softmax softmax = {largest_of_warp(largest) * LOG2E, 1.f};
    for (int i = 0; i < C::PER_LANE; ++i) sum += softmax.score(logits[i]);
    softmax.scale = ptx::rcp(sum_over_warp(sum));
    return softmax;
}

// Where weights are renormalised any shift and scale will do, as long as NaN stays NaN.
template <class C>
__device__ Softmax any_softmax_of(const float (&logits)[C::PER_LANE]) {
    bool has_nan = false;
    for (int i = 0; i < C::PER_LANE; ++i) has_nan |= isnan(logits[i]);
    return {0.f, __any_sync(ALL, has_nan) ? minus_infinity() - minus_infinity() : 1.f};
}

// Ranks of a token's experts, into s_rank. Returns what its softmax needs.
template <class C>
__device__ Softmax rank_experts(const typename C::Logit* logits, const float* bias, uint32_t* s_rank, int num_experts,
                                bool is_sigmoid, bool renormalize) {
    const int lane_idx = threadIdx.x % 32;
    float r_logits[C::PER_LANE];
#pragma unroll
    for (int i = 0; i < C::PER_LANE; ++i) {
        const int expert = lane_idx + 32 * i;
        r_logits[i] = expert < num_experts ? float(logits[expert]) : minus_infinity();
    }
    constexpr bool BY_SCORE = C::KEY == Key::SCORE;
    const bool sums = !is_sigmoid && (BY_SCORE || !renormalize);
    const Softmax softmax = sums ? softmax_of<C>(r_logits) : any_softmax_of<C>(r_logits);
#pragma unroll
    for (int i = 0; i < C::PER_LANE; ++i) {
        const int expert = lane_idx + 32 * i;
        float key = r_logits[i];
        if (BY_SCORE && expert < num_experts) {
            key = is_sigmoid ? sigmoid(key) : softmax.score(key);
            if (bias) key += bias[expert];
        }
        s_rank[expert] = rank_of(key);
    }
    __syncwarp();  // from here on lanes read each other's ranks
    return softmax;
}

// Cross out all experts but those of the topk_group groups whose group_best best keys have the largest sum.
__device__ void keep_best_groups(uint32_t* s_rank, int num_experts, int n_group, int topk_group, int group_best) {
    const int lane_idx = threadIdx.x % 32, size = num_experts / n_group;
    uint32_t group_rank = 0;  // lane g: of group g
    for (int group = 0; group < n_group; ++group) {
        uint32_t first = 0, second = 0;  // the two best that this lane has seen
#pragma unroll 1
        for (int i = lane_idx; i < size; i += 32) {
            const uint32_t rank = s_rank[group * size + i];
            second = max(second, min(first, rank));
            first = max(first, rank);
        }
        const uint32_t best = __reduce_max_sync(ALL, first);
        float score = value_of(best);
        if (group_best == 2) {
            const bool owner = is_lowest_lane(__ballot_sync(ALL, first == best));
            score += value_of(__reduce_max_sync(ALL, owner ? second : first));
        }
        if (lane_idx == group) group_rank = rank_of(score);
    }
    unsigned kept = 0;  // one bit for each group
    for (int i = 0; i < topk_group; ++i) {
        const unsigned best = __ballot_sync(ALL, group_rank == __reduce_max_sync(ALL, group_rank));
        kept |= best & -best;
        if (is_lowest_lane(best)) group_rank = 0;
    }
    for (int group = 0; group < n_group; ++group)
        for (int i = kept >> group & 1 ? size : lane_idx; i < size; i += 32) s_rank[group * size + i] = 0;
    __syncwarp();  // what is crossed out is seen by the lane whose share it belongs to
}

struct Best {
    uint32_t rank;
    int expert;
};

__device__ Best better(Best a, Best b) {
    return b.rank > a.rank || (b.rank == a.rank && b.expert < a.expert) ? b : a;
}

// Lane j returns the j-th choice.
template <class C>
__device__ int choose_by_shuffles(const uint32_t* s_rank, int top_k) {
    const int lane_idx = threadIdx.x % 32;
    uint32_t r_rank[C::PER_LANE];
    int expert = 0;
#pragma unroll
    for (int i = 0; i < C::PER_LANE; ++i) r_rank[i] = s_rank[lane_idx + 32 * i];
    for (int choice = 0; choice < top_k; ++choice) {
        Best best = {0, 0};
#pragma unroll
        for (int i = 0; i < C::PER_LANE; ++i) best = better(best, {r_rank[i], lane_idx + 32 * i});
        for (int distance = 16; distance > 0; distance /= 2)
            best = better(best, {__shfl_xor_sync(ALL, best.rank, distance), __shfl_xor_sync(ALL, best.expert, distance)});
#pragma unroll
        for (int i = 0; i < C::PER_LANE; ++i)
            if (best.expert == lane_idx + 32 * i) r_rank[i] = 0;
        if (lane_idx == choice) expert = best.expert;
    }
    return expert;
}

// Lane j returns the j-th choice. s_rank is used up.
template <class C>
__device__ int choose_by_champions(uint32_t* s_rank, int* s_chosen, int top_k) {
    const int lane_idx = threadIdx.x % 32;
    uint32_t champion = 0;  // the best of this lane's share
#pragma unroll
    for (int i = 0; i < C::PER_LANE; ++i) champion = max(champion, s_rank[(31 - lane_idx) * C::PER_LANE + i]);
    __syncwarp();  // all lanes have read the ranks that others cross out; votes alone order no memory
    for (int choice = 0; choice < top_k; ++choice) {
        const uint32_t best = __reduce_max_sync(ALL, champion);
        const int owner = 31 - __clz(__ballot_sync(ALL, champion == best));
        const int expert = (31 - owner) * C::PER_LANE + lane_idx;  // which this lane looks at, if it is in the share
        uint32_t rank = 0;
        if (lane_idx < C::PER_LANE) rank = s_rank[expert];
        if (is_lowest_lane(__ballot_sync(ALL, rank == best))) {
            s_chosen[choice] = expert;
            s_rank[expert] = rank = 0;
        }
        const uint32_t next = __reduce_max_sync(ALL, rank);
        if (lane_idx == owner) champion = next;
        __syncwarp();  // what was chosen and crossed out is seen by lanes that look at this share again
    }
    return s_chosen[lane_idx % top_k];
}

template <class C>
__device__ float weight_of(const typename C::Logit* logits, int expert, bool is_chosen, Softmax softmax, bool is_sigmoid,
                           bool renormalize) {
    const float logit = is_chosen ? float(logits[expert]) : minus_infinity();
    const float largest = renormalize ? largest_of_warp(logit) : 0.f;
    float weight;
    if (is_sigmoid) {
        const float shift = fminf(0.f, largest) * LOG2E;
        weight = ptx::rcp(ptx::ex2(shift) + ptx::ex2(shift - logit * LOG2E));
    } else {
        if (renormalize) softmax.shift = largest * LOG2E;
        weight = softmax.score(logit);
    }
    if (!is_chosen) weight = 0.f;
    return renormalize ? weight * ptx::rcp(sum_over_warp(weight)) : weight;
}

template <class C>
__global__ void __launch_bounds__(32 * C::WARPS)
    route_kernel(const typename C::Logit* logits,  // [num_tokens, num_experts]
                 const float* bias,                // [num_experts] or null
                 float* topk_weights, int* topk_ids, int num_tokens, int num_experts, int top_k, int is_sigmoid,
                 int renormalize, int n_group, int topk_group, int group_best, float scaling) {
    __shared__ SharedStorage<C> s;
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32, token = blockIdx.x * C::WARPS + warp_idx;
#if __CUDA_ARCH__ >= 900
    ptx::griddep_launch_dependents();  // what follows may start; it waits before it reads
    ptx::griddep_wait();               // what comes before may still write the logits
#endif
    if (token >= num_tokens) return;
    logits += (long long)token * num_experts;
    uint32_t* s_rank = s.rank[warp_idx];
    const Softmax softmax = rank_experts<C>(logits, bias, s_rank, num_experts, is_sigmoid, renormalize);
    if (C::KEY == Key::SCORE && n_group > 1)
        keep_best_groups(s_rank, num_experts, n_group, topk_group, group_best);
    const int expert = C::CHOICE == Choice::CHAMPIONS ? choose_by_champions<C>(s_rank, s.chosen[warp_idx], top_k)
                                                      : choose_by_shuffles<C>(s_rank, top_k);
    const float weight = weight_of<C>(logits, expert, lane_idx < top_k, softmax, is_sigmoid, renormalize);
    if (lane_idx < top_k) {
        topk_weights[(long long)token * top_k + lane_idx] = weight * scaling;
        topk_ids[(long long)token * top_k + lane_idx] = expert;
    }
}

constexpr int BALANCE_WARPS = 8, MAX_EXPERTS = 512;

template <class Logit>
__global__ void __launch_bounds__(32 * BALANCE_WARPS)
    balance_sums_kernel(const Logit* logits, const int* topk_ids, float* score_sums, int* counts, int num_tokens,
                        int num_experts, int top_k, int is_sigmoid) {
    __shared__ float s_sum[BALANCE_WARPS][MAX_EXPERTS];
    __shared__ int s_count[MAX_EXPERTS];
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    for (int i = threadIdx.x; i < BALANCE_WARPS * MAX_EXPERTS; i += blockDim.x) s_sum[0][i] = 0.f;
    for (int i = threadIdx.x; i < MAX_EXPERTS; i += blockDim.x) s_count[i] = 0;
    __syncthreads();  // sums and counts are zero before any warp adds to them
    for (long long token = blockIdx.x * BALANCE_WARPS + warp_idx; token < num_tokens; token += gridDim.x * BALANCE_WARPS) {
        const Logit* row = logits + token * num_experts;
        Softmax softmax = {0.f, 1.f};
        float sum = 0.f, largest = minus_infinity();
        for (int e = lane_idx; e < num_experts && !is_sigmoid; e += 32) largest = fmaxf(largest, float(row[e]));
        softmax.shift = largest_of_warp(largest) * LOG2E;
        for (int e = lane_idx; e < num_experts; e += 32) sum += is_sigmoid ? sigmoid(row[e]) : softmax.score(row[e]);
        softmax.scale = ptx::rcp(sum_over_warp(sum));
        for (int e = lane_idx; e < num_experts; e += 32)
            s_sum[warp_idx][e] += is_sigmoid ? sigmoid(row[e]) * softmax.scale : softmax.score(row[e]);
        const int id = lane_idx < top_k ? topk_ids[token * top_k + lane_idx] : -1;
        if (0 <= id && id < num_experts) atomicAdd(&s_count[id], 1);  // others name no expert
    }
    __syncthreads();  // every warp has added all of its tokens
    for (int e = threadIdx.x; e < num_experts; e += blockDim.x) {
        float sum = 0.f;
        for (int warp = 0; warp < BALANCE_WARPS; ++warp) sum += s_sum[warp][e];
        score_sums[blockIdx.x * num_experts + e] = sum;
        counts[blockIdx.x * num_experts + e] = s_count[e];
    }
}

constexpr int LOSS_THREADS = 1024, MAX_PARTS = 16;

// loss = num_experts * sum over experts of (its share of all choices) * (its mean score). One block: a thread sums a part
// of the blocks for one expert, the first num_experts threads add the parts in order, and then each other's.
__global__ void __launch_bounds__(LOSS_THREADS)
    balance_loss_kernel(const float* score_sums, const int* counts, float* loss, int blocks, int num_tokens, int num_experts,
                        int top_k) {
    __shared__ float s_score[LOSS_THREADS], s_sum[32];
    __shared__ int s_count[LOSS_THREADS];
    const int parts = min(LOSS_THREADS / num_experts, MAX_PARTS), expert = threadIdx.x % num_experts;
    float score = 0.f;
    int count = 0;
#pragma unroll 8
    for (int block = threadIdx.x / num_experts; block < blocks; block += parts) {
        if (threadIdx.x >= parts * num_experts) break;  // a thread without a part
        score += score_sums[block * num_experts + expert];
        count += counts[block * num_experts + expert];
    }
    s_score[threadIdx.x] = score;
    s_count[threadIdx.x] = count;
    __syncthreads();  // all parts are there
    float share = 0.f;
    if (threadIdx.x < num_experts) {
        for (int part = 1; part < parts; ++part) {
            score += s_score[part * num_experts + threadIdx.x];
            count += s_count[part * num_experts + threadIdx.x];
        }
        share = score / num_tokens * (float(count) / (float(num_tokens) * top_k));
    }
    share = sum_over_warp(share);
    if (threadIdx.x % 32 == 0) s_sum[threadIdx.x / 32] = share;
    __syncthreads();  // one sum from each warp, for the first
    if (threadIdx.x < 32) {
        const float sum = sum_over_warp(s_sum[threadIdx.x]);
        if (threadIdx.x == 0) *loss = sum * num_experts;
    }
}
