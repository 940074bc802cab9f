// Generated from nbs/10_tiling.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// Tiles in shared memory and their products on the CUDA cores: what steps 10 and 20 share.
//
// A block of 128 threads computes BLOCK_M queries against BLOCK_N keys at a time. Thread (tx, ty) of
// its 16 x 8 threads owns rows ty, ty + 8, ... and columns tx, tx + 16, ...: the 16 threads that share
// a row are half a warp, so a row is reduced by shuffles and its weights never leave the warp.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int THREADS = 128;
constexpr int THREADS_X = 16;
constexpr int THREADS_Y = THREADS / THREADS_X;
constexpr int CHUNK = 8;  // elements in one 16-byte access
constexpr float LN_2 = 0.693147180559945f;

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void from_float(__nv_bfloat16& y, float x) { y = __float2bfloat16(x); }
__device__ inline void from_float(__half& y, float x) { y = __float2half(x); }

// Tile sizes of a kernel and what follows from them for one thread.
template <class Element_, int BLOCK_M_, int BLOCK_N_, int HEAD_DIM_>
struct TileConfig {
    using Element = Element_;
    static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_, HEAD_DIM = HEAD_DIM_;
    static constexpr int ROWS = BLOCK_M / THREADS_Y;          // rows a thread owns
    static constexpr int COLUMNS = BLOCK_N / THREADS_X;       // score columns a thread owns
    static constexpr int PAIRS = HEAD_DIM / (2 * THREADS_X);  // pairs of output columns a thread owns
    static constexpr int STRIDE = ((HEAD_DIM / CHUNK) | 1) * CHUNK;
    static constexpr int MIN_BLOCKS = HEAD_DIM <= 64 ? 3 : 2;  // blocks an SM holds; caps the registers of a thread
    static_assert(BLOCK_M % THREADS_Y == 0 && BLOCK_N % THREADS_X == 0 && HEAD_DIM % 32 == 0);
    static_assert(BLOCK_N % 4 == 0, "weights are read four at a time");
};

// Everything a block keeps in shared memory. A row of STRIDE elements is an odd number of 16-byte
// chunks: eight threads reading the same chunk of eight consecutive rows touch every bank once.
template <class C>
struct SharedStorage {
    alignas(16) typename C::Element q[C::BLOCK_M][C::STRIDE];
    alignas(16) typename C::Element k[C::BLOCK_N][C::STRIDE];
    alignas(16) typename C::Element v[C::BLOCK_N][C::STRIDE];
    alignas(16) float s[C::BLOCK_M][C::BLOCK_N + 4];  // scores on their way to the second product
};

// Copy the first num_rows rows and num_columns columns of a matrix into a tile; zero the rest, so that
// a key beyond the end contributes 0 and not what the memory held. Rows start at 16-byte boundaries.
template <int ROWS, int HEAD_DIM, int STRIDE, class Element>
__device__ inline void load_tile(Element (&s_tile)[ROWS][STRIDE], const Element* g_rows, long long row_stride,
                                 int num_rows, int num_columns) {
    for (int i = threadIdx.x; i < ROWS * HEAD_DIM / CHUNK; i += THREADS) {
        int row = i / (HEAD_DIM / CHUNK), column = i % (HEAD_DIM / CHUNK) * CHUNK;
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (row < num_rows && column < num_columns)
            chunk = *reinterpret_cast<const uint4*>(&g_rows[row * row_stride + column]);
        *reinterpret_cast<uint4*>(&s_tile[row][column]) = chunk;
    }
}

// Eight elements, read as one 16-byte access and widened.
template <class Element>
__device__ inline void load_chunk(float (&r_chunk)[CHUNK], const Element* s_chunk) {
    alignas(16) Element elements[CHUNK];
    *reinterpret_cast<uint4*>(elements) = *reinterpret_cast<const uint4*>(s_chunk);
    #pragma unroll
    for (int e = 0; e < CHUNK; ++e) r_chunk[e] = to_float(elements[e]);
}

// r_scores[i][j] = Q[ty + 8i] . K[tx + 16j]
template <class C>
__device__ inline void multiply_qk(float (&r_scores)[C::ROWS][C::COLUMNS], const SharedStorage<C>& smem) {
    const int tx = threadIdx.x % THREADS_X, ty = threadIdx.x / THREADS_X;
    #pragma unroll
    for (int i = 0; i < C::ROWS; ++i)
        #pragma unroll
        for (int j = 0; j < C::COLUMNS; ++j) r_scores[i][j] = 0.0f;
    #pragma unroll 2
    for (int d = 0; d < C::HEAD_DIM; d += CHUNK) {
        float r_q[CHUNK], r_k[C::COLUMNS][CHUNK];
        #pragma unroll
        for (int j = 0; j < C::COLUMNS; ++j) load_chunk(r_k[j], &smem.k[tx + j * THREADS_X][d]);
        #pragma unroll
        for (int i = 0; i < C::ROWS; ++i) {
            load_chunk(r_q, &smem.q[ty + i * THREADS_Y][d]);
            #pragma unroll
            for (int j = 0; j < C::COLUMNS; ++j)
                #pragma unroll
                for (int e = 0; e < CHUNK; ++e) r_scores[i][j] += r_q[e] * r_k[j][e];
        }
    }
}

// r_out += S V for this thread's rows and its pairs of columns 2 tx + 32 c.
template <class C>
__device__ inline void multiply_sv(float (&r_out)[C::ROWS][C::PAIRS][2], const SharedStorage<C>& smem) {
    const int tx = threadIdx.x % THREADS_X, ty = threadIdx.x / THREADS_X;
    #pragma unroll 1
    for (int n = 0; n < C::BLOCK_N; n += 4) {
        alignas(16) float r_s[C::ROWS][4];
        #pragma unroll
        for (int i = 0; i < C::ROWS; ++i)
            *reinterpret_cast<float4*>(r_s[i]) = *reinterpret_cast<const float4*>(&smem.s[ty + i * THREADS_Y][n]);
        #pragma unroll
        for (int c = 0; c < C::PAIRS; ++c)
            #pragma unroll
            for (int m = 0; m < 4; ++m) {
                alignas(4) typename C::Element pair[2];
                *reinterpret_cast<unsigned*>(pair) = *reinterpret_cast<const unsigned*>(&smem.v[n + m][2 * tx + 32 * c]);
                #pragma unroll
                for (int i = 0; i < C::ROWS; ++i)
                    #pragma unroll
                    for (int e = 0; e < 2; ++e) r_out[i][c][e] += r_s[i][m] * to_float(pair[e]);
            }
    }
}

// Scale into powers of two, and set to minus infinity what the row may not see: its first `visible`
// keys are allowed, counted from the start of the tile.
template <class C>
__device__ inline void scale_and_mask(float (&r_scores)[C::COLUMNS], int visible, float softmax_scale_log2) {
    const int tx = threadIdx.x % THREADS_X;
    #pragma unroll
    for (int j = 0; j < C::COLUMNS; ++j)
        r_scores[j] = tx + j * THREADS_X < visible ? r_scores[j] * softmax_scale_log2 : minus_infinity();
}

// Over the 16 threads that share a row; each of them gets the result.
__device__ inline float row_reduce_max(float x) {
    #pragma unroll
    for (int lane = THREADS_X / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, lane));
    return x;
}
__device__ inline float row_reduce_sum(float x) {
    #pragma unroll
    for (int lane = THREADS_X / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffff, x, lane);
    return x;
}

// Divide a row by its sum and write it. A row that saw no key has sum 0 and becomes 0; NaN stays NaN.
template <class C>
__device__ inline void store_row(typename C::Element* g_row, const float (&r_row)[C::PAIRS][2], float row_sum, int head_dim) {
    const int tx = threadIdx.x % THREADS_X;
    const float inverse = row_sum == 0.0f ? 0.0f : 1.0f / row_sum;
    #pragma unroll
    for (int c = 0; c < C::PAIRS; ++c)
        #pragma unroll
        for (int e = 0; e < 2; ++e)
            if (2 * tx + 32 * c < head_dim) from_float(g_row[2 * tx + 32 * c + e], r_row[c][e] * inverse);
}
