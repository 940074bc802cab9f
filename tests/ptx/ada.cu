// Kernels that show what single instructions do, from sm_89 on: e4m3. Tests and notebook 08 run them.
#include "common/ptx/convert.h"
#include "common/ptx/mma.h"

__global__ void pack_e4m3_kernel(const float* x, int* packed, int quads) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < quads) packed[i] = int(ptx::pack_e4m3(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]));
}

// All 256 codes, two at a time, to fp16.
__global__ void unpack_e4m3_kernel(int* halves) {
    int i = threadIdx.x;
    halves[i] = int(ptx::unpack_e4m3x2(uint16_t(2 * i | (2 * i + 1) << 8)));
}

// d[16][8] = c[16][8] + a[16][32] b[32][8]. a: rows of 32 elements; b: columns of 32 elements; four to a word.
__global__ void mma_m16n8k32_kernel(const unsigned* a, const unsigned* b, const float* c, float* d) {
    int group = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned *a_row = a + group * 8 + t, *b_column = b + group * 8 + t;
    uint32_t a_fragment[4] = {a_row[0], a_row[64], a_row[4], a_row[68]}, b_fragment[2] = {b_column[0], b_column[4]};
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = c[(group + i / 2 * 8) * 8 + 2 * t + i % 2];
    ptx::mma_m16n8k32_e4m3(sum, a_fragment, b_fragment);
    for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}
