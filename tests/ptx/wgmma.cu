// Kernels that show what one WGMMA does. Tests and notebook 08 run them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/basic.h"
#include "common/ptx/mbarrier.h"
#include "common/ptx/tma.h"
#include "common/ptx/wgmma.h"

extern __shared__ __align__(1024) unsigned char smem_raw[];

// Accumulators by their place in D[64][N].
template <int N, class Visit>
__device__ void each_accumulator(Visit visit) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < N / 2; ++i) visit(i, (row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2);
}

// Bytes of global memory to shared memory at `offset`, visible to the tensor cores.
__device__ void fill(int offset, const unsigned char* bytes, int count) {
    for (int i = threadIdx.x * 16; i < count; i += blockDim.x * 16)
        *reinterpret_cast<uint4*>(smem_raw + offset + i) = *reinterpret_cast<const uint4*>(bytes + i);
    ptx::fence_proxy_async();
    __syncthreads();
}

// d[64][128] (+)= A B. `a` and `b` are shared memory byte for byte; their descriptors are given by their fields. Without
// `accumulate` the product is computed twice, and the second must not see the first.
template <class Element, ptx::Major A_MAJOR, ptx::Major B_MAJOR>
__global__ void __launch_bounds__(128, 1)
    wgmma_layout_kernel(const unsigned char* a, int a_bytes, int a_start, int a_swizzle, int a_leading, int a_stride,
                        const unsigned char* b, int b_bytes, int b_start, int b_swizzle, int b_leading, int b_stride,
                        int accumulate, float* d) {
    fill(0, a, a_bytes);
    fill(a_bytes, b, b_bytes);
    const ptx::MatrixDescriptor a_tile(smem_raw + a_start, ptx::Swizzle(a_swizzle), a_leading, a_stride);
    const ptx::MatrixDescriptor b_tile(smem_raw + a_bytes + b_start, ptx::Swizzle(b_swizzle), b_leading, b_stride);
    float sum[64];
    each_accumulator<128>([&](int i, int place) { sum[i] = d[place]; });
    if (!accumulate) {
        ptx::wgmma_fence(sum);
        ptx::wgmma_ss<128, Element, A_MAJOR, B_MAJOR>(sum, a_tile, b_tile, false);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>(sum);
    }
    ptx::wgmma_fence(sum);
    ptx::wgmma_ss<128, Element, A_MAJOR, B_MAJOR>(sum, a_tile, b_tile, accumulate);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sum);
    each_accumulator<128>([&](int i, int place) { d[place] = sum[i]; });
}

// The A fragment of a thread, from 64 rows of 32 bytes.
__device__ void load_fragment(uint32_t (&r)[4], const unsigned* a) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) r[i] = a[(row + i % 2 * 8) * 8 + t + i / 2 * 4];
}

// The product of one N, from shared memory or, with A_REGISTERS, with A from registers.
template <int N, class Element, ptx::Major B_MAJOR, bool A_REGISTERS>
__device__ void multiply(const unsigned* a, ptx::MatrixDescriptor b_tile, float* d) {
    float sum[N / 2];
    uint32_t r[4];
    load_fragment(r, a);
    each_accumulator<N>([&](int i, int place) { sum[i] = d[place]; });
    ptx::wgmma_fence(sum, r);
    if constexpr (A_REGISTERS) ptx::wgmma_rs<N, Element, B_MAJOR>(sum, r, b_tile);
    else ptx::wgmma_ss<N, Element, ptx::K_MAJOR, B_MAJOR>(sum, ptx::k_major(smem_raw, ptx::SWIZZLE_32B), b_tile);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sum);
    each_accumulator<N>([&](int i, int place) { d[place] = sum[i]; });
}

template <int N, int LAST, class Element, ptx::Major B_MAJOR, bool A_REGISTERS>
__device__ void multiply_up_to(const unsigned* a, ptx::MatrixDescriptor b_tile, float* d) {
    multiply<N, Element, B_MAJOR, A_REGISTERS>(a, b_tile, d);
    if constexpr (N < LAST) multiply_up_to<N + 8, LAST, Element, B_MAJOR, A_REGISTERS>(a, b_tile, d + 64 * N);
}

// d += A[64][k] B[k][N] for N = FIRST, FIRST + 8, ... LAST, one [64][N] after the other.
// a: rows of 32 bytes; a_image: the same, as SWIZZLE_32B has it in shared memory; b_image: LAST rows of k_major, or the
// spans of mn_major, with 128-byte swizzle.
template <int FIRST, int LAST, class Element, ptx::Major B_MAJOR, bool A_REGISTERS>
__global__ void __launch_bounds__(128, 1)
    wgmma_every_n_kernel(const unsigned* a, const unsigned char* a_image, const unsigned char* b_image, int b_bytes,
                         float* d) {
    fill(0, a_image, 2048);
    fill(2048, b_image, b_bytes);
    const ptx::MatrixDescriptor b_tile = B_MAJOR == ptx::K_MAJOR ? ptx::k_major(smem_raw + 2048)
                                                                 : ptx::mn_major(smem_raw + 2048, 2048);
    multiply_up_to<FIRST, LAST, Element, B_MAJOR, A_REGISTERS>(a, b_tile, d);
}
