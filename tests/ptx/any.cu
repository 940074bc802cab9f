// Kernels that show what single instructions do, for every architecture. Tests and notebook 08 run them.
#include "common/ptx/barrier.h"
#include "common/ptx/convert.h"
#include "common/ptx/ldmatrix.h"
#include "common/ptx/memory.h"
#include "common/ptx/mma.h"

// Warps 0 and 1 arrive, warp 2 waits and adds up what they wrote; three times, each with its own barrier: a second
// arrival before the first one was waited for would be one too many.
__global__ void named_barrier_kernel(const int* in, int* sums) {
    __shared__ int values[3][64];
    for (int round = 0; round < 3; ++round) {
        if (threadIdx.x < 64) {
            values[round][threadIdx.x] = in[round * 64 + threadIdx.x];
            ptx::bar_arrive(1 + round, 96);
        } else {
            ptx::bar_sync(1 + round, 96);
            int sum = 0;
            for (int i = 0; i < 64; ++i) sum += values[round][(i + threadIdx.x) % 64];
            sums[round * 32 + threadIdx.x - 64] = sum;
        }
    }
}

// Two warps vote at one barrier, two at another, `rounds` times; each pair learns whether any of its threads said yes.
__global__ void vote_kernel(const int* says, int* heard, int rounds) {
    const int pair = threadIdx.x / 64;
    for (int round = 0; round < rounds; ++round) {
        const int i = round * 128 + threadIdx.x;
        heard[i] = ptx::bar_red_or(1 + pair, 64, says[i] != 0);
    }
}

// A permutation of rows of 16 bytes through the 16-byte accesses.
__global__ void memory_kernel(const int* in, int* out, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    uint4 value = ptx::ld_nc_v4(in + 4 * row);
    ptx::st_v4(out + 4 * (rows - 1 - row), value);
}

// Blocks hand a token on: block b adds its number to what block b - 1 left. counter counts the blocks that are done.
__global__ void release_kernel(int* token, int* flag, int* counter) {
    if (threadIdx.x == 0) {
        while (ptx::ld_acquire(flag) != int(blockIdx.x)) ptx::spin_yield();
        token[blockIdx.x + 1] = token[blockIdx.x] + int(blockIdx.x) + 1;
        ptx::red_release(counter, 1);
        ptx::st_release(flag, int(blockIdx.x) + 1);
    }
}

__global__ void special_function_kernel(const float* x, float* ex2, float* rcp, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    ex2[i] = ptx::ex2(x[i]);
    rcp[i] = ptx::rcp(x[i]);
}

__global__ void pack_f16_kernel(const float* x, int* packed, int pairs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < pairs) packed[i] = int(ptx::pack_f16(x[2 * i], x[2 * i + 1]));
}

// 32 rows of 8 halves lie 48 bytes apart in shared memory; lane l passes row 5l + 3. What is not loaded is 0.
__global__ void ldmatrix_kernel(const int* rows, unsigned* registers, int count, int transposed) {
    __shared__ __align__(16) unsigned char tile[32 * 48];
    *reinterpret_cast<uint4*>(tile + threadIdx.x * 48) = reinterpret_cast<const uint4*>(rows)[threadIdx.x];
    __syncthreads();
    const void* row = tile + (5 * threadIdx.x + 3) % 32 * 48;
    uint32_t r1[1] = {0}, r2[2] = {0, 0}, r4[4] = {0, 0, 0, 0};
    if (count == 1 && !transposed) ptx::ldmatrix_x1(r1, row);
    if (count == 1 && transposed) ptx::ldmatrix_x1_trans(r1, row);
    if (count == 2 && !transposed) ptx::ldmatrix_x2(r2, row);
    if (count == 2 && transposed) ptx::ldmatrix_x2_trans(r2, row);
    if (count == 4 && !transposed) ptx::ldmatrix_x4(r4, row);
    if (count == 4 && transposed) ptx::ldmatrix_x4_trans(r4, row);
    for (int i = 0; i < 4; ++i) registers[threadIdx.x * 4 + i] = r4[i] + (i < 2 ? r2[i] : 0) + (i < 1 ? r1[i] : 0);
}

// d[16][8] = c[16][8] + a[16][8] b[8][8]. a: rows of 8 halves; b: columns of 8 halves.
__global__ void mma_m16n8k8_kernel(const unsigned* a, const unsigned* b, const float* c, float* d) {
    int group = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32_t a_fragment[2] = {a[group * 4 + t], a[(group + 8) * 4 + t]}, b_fragment[1] = {b[group * 4 + t]};
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = c[(group + i / 2 * 8) * 8 + 2 * t + i % 2];
    ptx::mma_m16n8k8_f16(sum, a_fragment, b_fragment);
    for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}
