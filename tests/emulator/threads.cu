// Micro-kernels for what threads do together. Each writes what a reader can predict.
// Architectures: sm_90a

extern __shared__ __align__(1024) unsigned char smem_raw[];

// Reverses each block through static and dynamic shared memory.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) reverse_kernel(const int* g_in, int* g_out) {
    __shared__ int s_values[THREADS];
    int* s_more = reinterpret_cast<int*>(smem_raw);
    const int t = threadIdx.x, base = blockIdx.x * THREADS;
    s_values[t] = g_in[base + t];
    s_more[t] = 1000 * blockIdx.x;
    __syncthreads();
    g_out[base + t] = s_values[THREADS - 1 - t] + s_more[THREADS - 1 - t];
}

__global__ void index_kernel(int* g_out) {
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int* g = g_out + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    g[0] = threadIdx.x;
    g[1] = threadIdx.y;
    g[2] = threadIdx.z;
    g[3] = blockIdx.x;
    g[4] = blockIdx.y;
    g[5] = blockIdx.z;
}

// All four shuffles, for every width: [kind][width][lane].
__global__ void shuffle_kernel(int* g_out, int operand) {
    const int lane = threadIdx.x;
    for (int i = 0; i < 6; ++i) {
        const int width = 1 << i;
        g_out[(0 * 6 + i) * 32 + lane] = __shfl_sync(0xffffffffu, 100 + lane, operand, width);
        g_out[(1 * 6 + i) * 32 + lane] = __shfl_up_sync(0xffffffffu, 100 + lane, operand, width);
        g_out[(2 * 6 + i) * 32 + lane] = __shfl_down_sync(0xffffffffu, 100 + lane, operand, width);
        g_out[(3 * 6 + i) * 32 + lane] = __shfl_xor_sync(0xffffffffu, 100 + lane, operand, width);
    }
}

// Shuffles of other types, under a partial mask, from a lane that takes no part, and of a warp that is not full.
__global__ void shuffle_types_kernel(double* g_double, float* g_float, int* g_partial, unsigned* g_absent) {
    const int lane = threadIdx.x;
    g_double[lane] = __shfl_sync(0xffffffffu, 0.5 * lane, 7);
    g_float[lane] = __shfl_xor_sync(0xffffffffu, 0.25f * lane, 1);
    if (lane < 8) {
        g_partial[lane] = __shfl_down_sync(0xffu, lane, 1);
        g_absent[lane] = __shfl_sync(0xffu, unsigned(lane), 20);
    }
}

__global__ void vote_kernel(const int* g_in, unsigned* g_out) {
    const int value = g_in[threadIdx.x];
    unsigned* g = g_out + 8 * threadIdx.x;
    int same = 7;
    g[0] = __ballot_sync(0xffffffffu, value > 2);
    g[1] = __any_sync(0xffffffffu, value > 2);
    g[2] = __all_sync(0xffffffffu, value > 2);
    g[3] = __match_any_sync(0xffffffffu, value);
    g[4] = __match_all_sync(0xffffffffu, value, &same);
    g[5] = same;
    g[6] = __match_all_sync(0xffffffffu, 5, &same);
    g[7] = same;
}

// The block's votes; thread 0 leaves early in every second block.
__global__ void block_vote_kernel(const int* g_in, int* g_out) {
    if (blockIdx.x % 2 == 1 && threadIdx.x == 0) return;
    const int yes = g_in[threadIdx.x];
    int* g = g_out + 3 * (blockIdx.x * blockDim.x + threadIdx.x);
    g[0] = __syncthreads_count(yes);
    g[1] = __syncthreads_and(yes);
    g[2] = __syncthreads_or(yes);
}

// Two producer warps fill a slot, two consumer warps empty it, with named barriers 1 (full) and 2 (empty).
__global__ void ring_kernel(int* g_out, int rounds) {
    __shared__ int s_slot[64];
    const int t = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        for (int i = 0; i < rounds; ++i) {
            if (i > 0) emu::bar_sync(2, 128);
            s_slot[t] = 1000 * i + t;
            emu::bar_arrive(1, 128);
        }
    } else {
        for (int i = 0; i < rounds; ++i) {
            emu::bar_sync(1, 128);
            g_out[64 * i + t] = s_slot[63 - t];
            if (i + 1 < rounds) emu::bar_arrive(2, 128);
        }
    }
}

// Lanes that left are not waited for; two halves of a warp meet separately.
__global__ void partial_warp_kernel(int* g_out) {
    const int lane = threadIdx.x % 32;
    if (threadIdx.x >= 32 && lane >= 20) return;
    int value = lane;
    if (lane < 10) value += __shfl_xor_sync(0x3ffu, 100, 1);
    else value += __shfl_sync(~0x3ffu, lane, 10);
    __syncwarp();
    g_out[threadIdx.x] = value + __popc(__ballot_sync(0xffffffffu, 1));
}

__global__ void atomics_kernel(int* g_int, unsigned* g_unsigned, float* g_float, unsigned long long* g_long, int* g_old) {
    __shared__ int s_count;
    if (threadIdx.x == 0) s_count = 0;
    __syncthreads();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    g_old[i] = atomicAdd(&g_int[0], 1);
    atomicMax(&g_int[1], i);
    atomicMin(&g_int[2], -i);
    atomicSub(&g_int[3], 2);
    atomicAnd(&g_unsigned[0], ~(1u << (i % 32)));
    atomicOr(&g_unsigned[1], 1u << (i % 32));
    atomicXor(&g_unsigned[2], 1u << (i % 32));
    atomicInc(&g_unsigned[3], 9);
    atomicAdd(&g_float[0], 1.0f);
    atomicExch(&g_float[1], 5.0f);
    atomicAdd(&g_long[0], 1ull << 40);
    atomicMax(&g_long[1], (unsigned long long)i << 33);
    for (int seen = g_int[4];;) {  // a maximum by compare-and-swap
        const int before = atomicCAS(&g_int[4], seen, max(seen, i));
        if (before == seen) break;
        seen = before;
    }
    atomicAdd(&s_count, 1);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&g_int[5], s_count);
}

// Many small additions to one place, from blocks that run at the same time.
__global__ void crowd_kernel(int* g_count, float* g_sum) {
    for (int i = 0; i < 2000; ++i) {
        atomicAdd(g_count, 1);
        atomicAdd(g_sum, 1.0f);
    }
}

// Every block waits until all have arrived: needs all of them at once.
__global__ void grid_barrier_kernel(int* g_count, int* g_out) {
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(g_count, 1);
        while (*(volatile int*)g_count < int(gridDim.x)) __nanosleep(20);
    }
    __syncthreads();
    g_out[blockIdx.x * blockDim.x + threadIdx.x] = *(volatile int*)g_count;
}

// The same with a loop that never yields.
__global__ void stubborn_kernel(int* g_flag, int* g_out) {
    if (threadIdx.x == 0) while (*(volatile int*)g_flag == 0) {}
    if (threadIdx.x == 1) *(volatile int*)g_flag = 1;
    g_out[threadIdx.x] = *(volatile int*)g_flag;
}

__global__ void print_kernel(int n) {
    if (threadIdx.x == 0) printf("block %d of %d: %.2f\n", blockIdx.x, n, 0.5 * blockIdx.x);
}

__constant__ int table[4] = {3, 1, 4, 1};
__device__ float scale = 2.0f;

__global__ void types_kernel(const float* g_in, float* g_out, long long shift, double factor, bool flag, unsigned n) {
    float4 v = reinterpret_cast<const float4*>(g_in)[threadIdx.x];
    v.x = v.x * scale + table[threadIdx.x % 4];
    v.y += float(factor);
    v.z = flag ? __ldg(&g_in[2]) : 0.0f;
    v.w += float(shift >> 33) + float(n >> 31);
    reinterpret_cast<float4*>(g_out)[threadIdx.x] = v;
}

// The difference of two clocks, which never goes back.
__global__ void clock_kernel(long long* g_out) {
    const long long begin = clock64();
    __syncthreads();
    g_out[threadIdx.x] = clock64() - begin;
}

// A sum in an order that barriers fix: bit-equal under every schedule.
__global__ void tree_sum_kernel(const float* g_in, float* g_out) {
    __shared__ float s_sum[128];
    s_sum[threadIdx.x] = g_in[blockIdx.x * 128 + threadIdx.x];
    for (int half = 64; half >= 32; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) s_sum[threadIdx.x] += s_sum[threadIdx.x + half];
    }
    __syncwarp();
    float sum = s_sum[threadIdx.x % 32];
    #pragma unroll
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (threadIdx.x == 0) g_out[blockIdx.x] = sum;
}
