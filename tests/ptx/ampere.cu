// Kernels that show what single instructions do, from sm_80 on. Tests and notebook 08 run them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/ptx/convert.h"
#include "common/ptx/cp_async.h"
#include "common/ptx/mma.h"

// Two groups of 128 copies of `bytes` bytes. Every third thread copies nothing, so that zeros arrive. `out` has what
// shared memory held after the first wait (group 0) and after the second (group 1).
__global__ void cp_async_kernel(const unsigned char* in, unsigned char* out, int bytes) {
    __shared__ __align__(16) unsigned char buffer[2][128 * 16];
    const bool valid = threadIdx.x % 3 != 2;
    for (int group = 0; group < 2; ++group) {
        void* to = buffer[group] + threadIdx.x * bytes;
        const void* from = in + (group * 128 + threadIdx.x) * bytes;
        if (bytes == 4) ptx::cp_async_4(to, from, valid);
        if (bytes == 8) ptx::cp_async_8(to, from, valid);
        if (bytes == 16) ptx::cp_async_16(to, from, valid);
        ptx::cp_async_commit();
    }
    ptx::cp_async_wait<1>();
    __syncthreads();
    for (int i = threadIdx.x; i < 128 * bytes; i += 128) out[i] = buffer[0][i];
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (int i = threadIdx.x; i < 128 * bytes; i += 128) out[128 * bytes + i] = buffer[1][i];
}

template <class Element>
__global__ void pack_kernel(const float* x, int* packed, int pairs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < pairs) packed[i] = int(ptx::pack<Element>(x[2 * i], x[2 * i + 1]));
}

// d[16][8] = c[16][8] + a[16][16] b[16][8]. a: rows of 16 elements; b: columns of 16 elements; both as pairs.
template <class Element>
__global__ void mma_m16n8k16_kernel(const unsigned* a, const unsigned* b, const float* c, float* d) {
    int group = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned *a_row = a + group * 8 + t, *b_column = b + group * 8 + t;
    uint32_t a_fragment[4] = {a_row[0], a_row[64], a_row[4], a_row[68]}, b_fragment[2] = {b_column[0], b_column[4]};
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = c[(group + i / 2 * 8) * 8 + 2 * t + i % 2];
    ptx::mma_m16n8k16<Element>(sum, a_fragment, b_fragment);
    for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}
