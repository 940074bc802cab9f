// Generated from nbs/60_routing.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Routing: a warp scores one token's experts and picks the best top_k, the lower id first among equals.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/basic.h"
#include "common/ptx/convert.h"

template <class Logit_, int PER_LANE_, bool SIGMOID_>
struct Config {
    using Logit = Logit_;
    static constexpr int PER_LANE = PER_LANE_;  // experts a lane looks after: lane, lane + 32, ...
    static constexpr bool SIGMOID = SIGMOID_;   // else softmax over all experts
    static constexpr int WARPS = 4;             // tokens of a block
    static_assert(PER_LANE >= 1 && PER_LANE <= 16, "up to 512 experts");
};

constexpr float LOG2E = 1.44269504f;

__device__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// Unsigned integers in the order of the floats. NaN ranks with -inf, -0 with 0; nothing ranks as low as 0, "taken".
__device__ uint32_t rank_of(float x) {
    const uint32_t bits = __float_as_uint(isnan(x) ? minus_infinity() : x + 0.f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

struct Best {
    uint32_t rank;
    int expert;
};

__device__ Best better(Best a, Best b) {
    return b.rank > a.rank || (b.rank == a.rank && b.expert < a.expert) ? b : a;
}

__device__ float sum_over_warp(float x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// 1 / sum of exp(logit - shift) over all experts, in `scale`; the largest logit in `shift`.
template <class C>
__device__ void softmax_of(const float (&logits)[C::PER_LANE], int num_experts, float& shift, float& scale) {
    shift = minus_infinity();
    for (int i = 0; i < C::PER_LANE; ++i) shift = fmaxf(shift, logits[i]);  // skips NaN; the sum does not
    for (int distance = 16; distance > 0; distance /= 2) shift = fmaxf(shift, __shfl_xor_sync(~0u, shift, distance));
    float sum = 0.f;
    for (int i = 0; i < C::PER_LANE; ++i)
        if (int(threadIdx.x % 32) + 32 * i < num_experts) sum += ptx::ex2((logits[i] - shift) * LOG2E);
    scale = 1.f / sum_over_warp(sum);
}

template <class C>
__global__ void __launch_bounds__(32 * C::WARPS)
    route_kernel(const typename C::Logit* logits, float* topk_weights, int* topk_ids, int num_tokens, int num_experts,
                 int top_k, int renormalize) {
    const int token = blockIdx.x * C::WARPS + threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    if (token >= num_tokens) return;
    logits += (long long)token * num_experts;
    float r_logits[C::PER_LANE];
    uint32_t r_rank[C::PER_LANE];
#pragma unroll
    for (int i = 0; i < C::PER_LANE; ++i) {
        const int expert = lane_idx + 32 * i;
        r_logits[i] = expert < num_experts ? float(logits[expert]) : minus_infinity();
        r_rank[i] = expert < num_experts ? rank_of(r_logits[i]) : 0;
    }
    float shift = 0.f, scale = 1.f;
    if constexpr (!C::SIGMOID) softmax_of<C>(r_logits, num_experts, shift, scale);

    int expert = 0;  // lane j keeps the j-th choice
    for (int choice = 0; choice < top_k; ++choice) {
        Best best = {0, 0};
#pragma unroll
        for (int i = 0; i < C::PER_LANE; ++i) best = better(best, {r_rank[i], lane_idx + 32 * i});
        for (int distance = 16; distance > 0; distance /= 2)
            best = better(best, {__shfl_xor_sync(~0u, best.rank, distance), __shfl_xor_sync(~0u, best.expert, distance)});
#pragma unroll
        for (int i = 0; i < C::PER_LANE; ++i)
            if (best.expert == lane_idx + 32 * i) r_rank[i] = 0;
        if (lane_idx == choice) expert = best.expert;
    }

    float weight = 0.f;
    if (lane_idx < top_k) {
        const float logit = float(logits[expert]);
        weight = C::SIGMOID ? 1.f / (1.f + ptx::ex2(-logit * LOG2E)) : ptx::ex2((logit - shift) * LOG2E) * scale;
    }
    if (renormalize) weight /= sum_over_warp(weight);
    if (lane_idx < top_k) {
        topk_weights[token * top_k + lane_idx] = weight;
        topk_ids[token * top_k + lane_idx] = expert;
    }
}
