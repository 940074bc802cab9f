// Generated from nbs/66_fused_layer.ipynb: edit the notebook, not this file.
// Architectures: sm_80 sm_90a

// Combine: each token is the weighted sum of its experts' rows, always in the order of its choices, and then of the
// shared expert's row. Permute: token rows copied into the order of the slots, where that is cheaper than gathering
// them, or multiplied by their weights, where a layer weighs before the experts.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/basic.h"
#include "common/ptx/convert.h"

__device__ float2 unpack(uint32_t pair, __nv_bfloat16) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ float2 unpack(uint32_t pair, __half) { return __half22float2(reinterpret_cast<const __half2&>(pair)); }

// Eight elements, weighed, on top of `sum`.
template <class Element>
__device__ void add(float (&sum)[8], float weight, uint4 values, Element) {
    const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float2 x = unpack(words[j], Element());
        sum[2 * j] += weight * x.x;
        sum[2 * j + 1] += weight * x.y;
    }
}

template <class Element>
__device__ uint4 pack(const float (&x)[8]) {
    return {ptx::pack<Element>(x[0], x[1]), ptx::pack<Element>(x[2], x[3]), ptx::pack<Element>(x[4], x[5]),
            ptx::pack<Element>(x[6], x[7])};
}

template <class Element, int TOP_K>  // 16 bytes of one token's output for each thread
__global__ void __launch_bounds__(256, 6)  // six blocks an SM: what counts is how many rows are under way
    combine_kernel(const Element* rows, const int* inverse_idx,
                   const float* topk_weights,  // [num_tokens, top_k]; null: all 1
                   const Element* shared,      // [num_tokens, hidden]; null: no shared expert
                   Element* out, int num_tokens, int top_k, int hidden, int splits, int num_slots) {
    const int chunks = hidden / 8;
    const long long at = blockIdx.x * 256ll + threadIdx.x;
    const int token = at / chunks, chunk = at % chunks;
    if (token >= num_tokens) return;
    float sum[8] = {};
    const Element* column = rows + chunk * 8;
    const int parts = top_k * splits;  // a row of each split, split by split
    int choice = 0, split = 0;         // of the next row: counted, since a division for each costs more than the row
    for (int first = 0; first < parts; first += TOP_K) {
        int row[TOP_K];  // only few pairs are split: their rows can be counted in an int
        float weights[TOP_K];
        uint4 values[TOP_K];
#pragma unroll
        for (int i = 0; i < TOP_K; ++i) {
            const int pair = token * top_k + choice, slot = first + i < parts ? inverse_idx[pair] : -1;
            weights[i] = slot < 0 ? 0.f : topk_weights ? topk_weights[pair] : 1.f;
            row[i] = slot >= 0 ? split * num_slots + slot : -1;
            if (++choice == top_k) choice = 0, ++split;
        }

#if __CUDA_ARCH__ >= 900
        ptx::griddep_wait();  // the rows come from the kernel before; the slots were ready when that one started
#endif
#pragma unroll
        for (int i = 0; i < TOP_K; ++i)  // coherent loads: the compiler may move ld.nc up, across the wait
            values[i] = row[i] >= 0 ? *reinterpret_cast<const uint4*>(column + (long long)row[i] * hidden) : uint4{};
#pragma unroll
        for (int i = 0; i < TOP_K; ++i) add(sum, weights[i], values[i], Element());
    }
    if (shared) add(sum, 1.f, reinterpret_cast<const uint4*>(shared)[at], Element());
    reinterpret_cast<uint4*>(out)[at] = pack<Element>(sum);
}

// A block a token. Its row goes to the slots of its pairs, or, without inverse_idx, to the rows of its pairs.
template <class Element>
__global__ void __launch_bounds__(256)
    permute_kernel(const Element* tokens, const int* inverse_idx,
                   const float* topk_weights,  // null: rows are copied as they are
                   Element* rows, int top_k, int chunks) {
#if __CUDA_ARCH__ >= 900
    ptx::griddep_wait();  // inverse_idx is written
    ptx::griddep_launch_dependents();
#endif
    const long long first = (long long)blockIdx.x * top_k;
    const uint4* source = reinterpret_cast<const uint4*>(tokens) + (long long)blockIdx.x * chunks;
    for (int i = threadIdx.x; i < chunks; i += 256) {
        const uint4 values = source[i];
#pragma unroll 8
        for (int choice = 0; choice < top_k; ++choice) {
            const long long row = inverse_idx ? inverse_idx[first + choice] : first + choice;
            if (row < 0) continue;  // the pair was dropped
            float product[8] = {};
            if (topk_weights) add(product, topk_weights[first + choice], values, Element());
            reinterpret_cast<uint4*>(rows)[row * chunks + i] = topk_weights ? pack<Element>(product) : values;
        }
    }
}
