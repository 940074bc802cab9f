// Generated from nbs/04_bench.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// Groups of four products of 64 x 16 by 16 x 64, one after the other: what WGMMA costs where it is emulated.
#include <cuda_bf16.h>

#include "common/ptx/basic.h"
#include "common/ptx/wgmma.h"

__global__ void products_kernel(const __nv_bfloat16* x, float* y, int groups) {
    __shared__ __align__(1024) __nv_bfloat16 s_x[64 * 64];  // both operands, in rows of 128 bytes
    for (int i = threadIdx.x; i < 64 * 64; i += 128) s_x[i] = x[i];
    ptx::fence_proxy_async();  // the tensor cores read what the threads have written
    __syncthreads();  // both operands are written, and visible, before any warp starts a product
    float r_sum[32] = {};
    const ptx::MatrixDescriptor tile = ptx::k_major(s_x);
    for (int group = 0; group < groups; ++group) {
        ptx::wgmma_fence(r_sum);
        #pragma unroll
        for (int kk = 0; kk < 4; ++kk) ptx::wgmma_ss<64, __nv_bfloat16>(r_sum, tile + 32 * kk, tile + 32 * kk, true);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>(r_sum);
    }
    y[threadIdx.x] = r_sum[0];
}
