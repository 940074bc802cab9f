// Generated from nbs/64_grouped_gemm.ipynb: edit the notebook, not this file.
// Architectures: sm_80

// Grouped GEMM for sm_80: out[slot] = f(tokens[slot] . weights[expert of the slot]), slots sorted by expert.
// All warps copy (cp.async, a ring of stages) and multiply (mma.sync); tokens are M, weights N. GATE_UP: gate and up
// rows interleaved by 8 in shared memory, so that a thread holds both of a feature, and SwiGLU in the epilogue.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/basic.h"
#include "common/ptx/convert.h"
#include "common/ptx/cp_async.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/mma.h"

template <class Element_, int BLOCK_TOKENS_, int STAGES_, bool GATE_UP_>
struct Config {
    using Element = Element_;
    static constexpr int BLOCK_TOKENS = BLOCK_TOKENS_;
    static constexpr int STAGES = STAGES_;
    static constexpr bool GATE_UP = GATE_UP_;
    static constexpr int BLOCK_K = 64;
    static constexpr int BLOCK_WEIGHTS = 128;                 // four warps of 32 rows side by side
    static constexpr int WARPS_M = BLOCK_TOKENS > 64 ? 2 : 1;  // and so many rows of such warps over the tokens
    static constexpr int THREADS = 128 * WARPS_M;
    static constexpr int M_TILES = BLOCK_TOKENS / 16 / WARPS_M, N_TILES = 4;
    static constexpr int FEATURES = GATE_UP ? 64 : 128;
    static constexpr int GROUP = 16;  // token blocks that share a walk over the weights
    static_assert(BLOCK_TOKENS % (16 * WARPS_M) == 0 && STAGES >= 2);
};

extern __shared__ __align__(1024) unsigned char smem_raw[];

template <class C>
struct SharedStorage {
    typename C::Element tokens[C::STAGES][C::BLOCK_TOKENS * C::BLOCK_K];
    typename C::Element weights[C::STAGES][C::BLOCK_WEIGHTS * C::BLOCK_K];
    int block_offsets[513];
};

template <class Element>
struct Problem {
    const Element* weights;  // [num_experts, rows, k]
    const Element* tokens;
    const int* permuted_idx;    // slot -> pair, for tokens in token order; null: tokens are in slot order
    const int* expert_offsets;  // [num_experts + 1]
    const Element* bias;        // [num_experts, rows], or null
    Element* out;               // [slots, features]
    int num_experts, weight_blocks, features, k, top_k;
};

struct Tile {
    int expert, weight_block, first_slot, rows;
};

template <class C>
__device__ Tile tile_of(const SharedStorage<C>& s, const Problem<typename C::Element>& p, int tile) {
    int expert = 0;
    for (int step = 256; step > 0; step /= 2)  // the last expert whose first tile is not beyond this one
        if (expert + step < p.num_experts && s.block_offsets[expert + step] * p.weight_blocks <= tile) expert += step;
    const int first_block = s.block_offsets[expert], blocks = s.block_offsets[expert + 1] - first_block;
    int at = tile - first_block * p.weight_blocks;
    const int group = at / (C::GROUP * p.weight_blocks), members = min(C::GROUP, blocks - group * C::GROUP);
    at -= group * C::GROUP * p.weight_blocks;
    const int begin = p.expert_offsets[expert], count = p.expert_offsets[expert + 1] - begin;
    const int size = (count + blocks - 1) / blocks, first = (group * C::GROUP + at % members) * size;
    return {expert, at / members, begin + first, min(size, count - first)};
}

template <class C>
struct Loader {
    using Element = typename C::Element;
    static constexpr int ROW_STEP = C::THREADS / 8;
    static constexpr int TOKEN_ROWS = (C::BLOCK_TOKENS + ROW_STEP - 1) / ROW_STEP, WEIGHT_ROWS = C::BLOCK_WEIGHTS / ROW_STEP;
    const Element* token[TOKEN_ROWS];
    const Element* weight[WEIGHT_ROWS];  // null: beyond the matrix
    int k;

    __device__ Loader(const Problem<Element>& p, const Tile& tile) : k(p.k) {
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
#pragma unroll
        for (int i = 0; i < TOKEN_ROWS; ++i) {
            const int slot = tile.first_slot + min(row + i * ROW_STEP, tile.rows - 1);
            token[i] = p.tokens + (p.permuted_idx ? p.permuted_idx[slot] / p.top_k : slot) * (long long)k + chunk * 8;
        }
        const Element* expert = p.weights + (long long)tile.expert * p.features * (C::GATE_UP ? 2 : 1) * k + chunk * 8;
#pragma unroll
        for (int i = 0; i < WEIGHT_ROWS; ++i) {
            const int r = row + i * ROW_STEP;  // GATE_UP: eight gate rows, then the eight up rows of the same features
            const int feature = tile.weight_block * C::FEATURES + (C::GATE_UP ? r / 16 * 8 + r % 8 : r);
            const int source = feature + (C::GATE_UP ? r / 8 % 2 * p.features : 0);
            weight[i] = feature < p.features ? expert + (long long)source * k : nullptr;
        }
    }

    __device__ void load(SharedStorage<C>& s, int stage, int k_begin) const {
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8, place = row * C::BLOCK_K + (chunk ^ row % 8) * 8;
        const bool inside = k_begin + chunk * 8 < k;
#pragma unroll
        for (int i = 0; i < TOKEN_ROWS; ++i)
            if (C::BLOCK_TOKENS % ROW_STEP == 0 || row + i * ROW_STEP < C::BLOCK_TOKENS)
                ptx::cp_async_16(&s.tokens[stage][place + i * ROW_STEP * C::BLOCK_K], token[i] + k_begin, inside);
#pragma unroll
        for (int i = 0; i < WEIGHT_ROWS; ++i) {
            const bool valid = inside && weight[i];
            ptx::cp_async_16(&s.weights[stage][place + i * ROW_STEP * C::BLOCK_K],
                             valid ? weight[i] + k_begin : token[0], valid);
        }
    }
};

// One stage: fragments of 16 tokens and of two groups of 8 weight rows, swizzled as they were written.
template <class C>
__device__ void multiply(const SharedStorage<C>& s, int stage, float (&acc)[C::M_TILES][C::N_TILES][4]) {
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    const int token_row = warp_idx / 4 * C::M_TILES * 16 + lane_idx % 16;
    const int weight_row = warp_idx % 4 * 32 + lane_idx / 16 * 8 + lane_idx % 8;
#pragma unroll
    for (int step = 0; step < C::BLOCK_K / 16; ++step) {
        uint32_t a[C::M_TILES][4], b[C::N_TILES / 2][4];
#pragma unroll
        for (int m = 0; m < C::M_TILES; ++m) {
            const int chunk = step * 2 + lane_idx / 16;
            ptx::ldmatrix_x4(a[m], &s.tokens[stage][(token_row + m * 16) * C::BLOCK_K + (chunk ^ token_row % 8) * 8]);
        }
#pragma unroll
        for (int n = 0; n < C::N_TILES / 2; ++n) {
            const int chunk = step * 2 + lane_idx / 8 % 2;
            ptx::ldmatrix_x4(b[n], &s.weights[stage][(weight_row + n * 16) * C::BLOCK_K + (chunk ^ weight_row % 8) * 8]);
        }
#pragma unroll
        for (int m = 0; m < C::M_TILES; ++m)
#pragma unroll
            for (int n = 0; n < C::N_TILES; ++n)
                ptx::mma_m16n8k16<typename C::Element>(acc[m][n], a[m], {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]});
    }
}

__device__ float swiglu(float gate, float up) { return gate * ptx::rcp(1.f + ptx::ex2(gate * -1.44269504f)) * up; }

template <class C>
__device__ void store(const Problem<typename C::Element>& p, const Tile& tile, const float (&acc)[C::M_TILES][C::N_TILES][4]) {
    using Element = typename C::Element;
    constexpr int OUTPUTS = C::GATE_UP ? C::N_TILES / 2 : C::N_TILES;  // groups of 8 features
    const int warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
    const Element* bias = p.bias ? p.bias + (long long)tile.expert * p.features * (C::GATE_UP ? 2 : 1) : nullptr;
#pragma unroll
    for (int n = 0; n < OUTPUTS; ++n) {
        const int feature = tile.weight_block * C::FEATURES + (warp_idx % 4 * OUTPUTS + n) * 8 + lane_idx % 4 * 2;
        if (feature >= p.features) continue;
        float first[2] = {}, second[2] = {};  // biases: of the outputs or their gates, of their ups
        for (int i = 0; i < 2 && bias; ++i) {
            first[i] = float(bias[feature + i]);
            if (C::GATE_UP) second[i] = float(bias[p.features + feature + i]);
        }
#pragma unroll
        for (int m = 0; m < C::M_TILES; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = (warp_idx / 4 * C::M_TILES + m) * 16 + half * 8 + lane_idx / 4;
                float x[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float value = acc[m][C::GATE_UP ? 2 * n : n][half * 2 + i] + first[i];
                    x[i] = C::GATE_UP ? swiglu(value, acc[m][C::GATE_UP ? 2 * n + 1 : n][half * 2 + i] + second[i]) : value;
                }
                if (row < tile.rows)
                    *reinterpret_cast<uint32_t*>(p.out + (long long)(tile.first_slot + row) * p.features + feature) =
                        ptx::pack<Element>(x[0], x[1]);
            }
    }
}

template <class C>
__device__ void compute(SharedStorage<C>& s, const Problem<typename C::Element>& p, const Tile& tile) {
    const Loader<C> loader(p, tile);
    const int blocks = (p.k + C::BLOCK_K - 1) / C::BLOCK_K;
    for (int block = 0; block < C::STAGES - 1; ++block) {
        if (block < blocks) loader.load(s, block, block * C::BLOCK_K);
        ptx::cp_async_commit();  // possibly empty, so that the count of groups is that of blocks
    }
    float acc[C::M_TILES][C::N_TILES][4] = {};
    for (int block = 0; block < blocks; ++block) {
        ptx::cp_async_wait<C::STAGES - 2>();
        __syncthreads();  // every thread's copies of this block have arrived, and the block before has been read by all
        const int next = block + C::STAGES - 1;
        if (next < blocks) loader.load(s, next % C::STAGES, next * C::BLOCK_K);
        ptx::cp_async_commit();
        multiply<C>(s, block % C::STAGES, acc);
    }
    store<C>(p, tile, acc);
    __syncthreads();  // the last block has been read by all; the next tile overwrites it
}

template <class C>
__global__ void __launch_bounds__(C::THREADS)
    grouped_gemm_mma_kernel(const typename C::Element* weights, const typename C::Element* tokens, const int* permuted_idx,
                            const int* expert_offsets, const int* block_offsets, const typename C::Element* bias,
                            typename C::Element* out, int num_experts, int weight_blocks, int features, int k, int top_k) {
    auto& s = *reinterpret_cast<SharedStorage<C>*>(smem_raw);
    for (int i = threadIdx.x; i <= num_experts; i += C::THREADS) s.block_offsets[i] = block_offsets[i];
    __syncthreads();  // the offsets are there
    const Problem<typename C::Element> p = {weights, tokens, permuted_idx, expert_offsets, bias, out,
                                            num_experts, weight_blocks, features, k, top_k};
    const int tiles = s.block_offsets[num_experts] * weight_blocks;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) compute<C>(s, p, tile_of<C>(s, p, tile));
}
