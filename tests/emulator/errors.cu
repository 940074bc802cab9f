// One mistake a function. `here: name` marks the line that the error must name.
// Architectures: sm_75 sm_90a

extern __shared__ __align__(1024) unsigned char smem_raw[];

__device__ void unequal_barriers() {
    if (threadIdx.x < 32) emu::bar_sync(1, 64);  // here: unequal_barriers
    else if (threadIdx.x < 64) __syncthreads();  // there: unequal_barriers
}

__device__ void half_a_warp() {
    if (threadIdx.x < 16) {
        __syncthreads();  // there: half_a_warp
    } else {
        __nanosleep(1);
        __syncthreads();  // here: half_a_warp
    }
}

__device__ void lane_missing(int n) {
    if (threadIdx.x != 5) __syncwarp();  // here: lane_missing
    else __syncwarp(n == 3 ? 0x20u : 0x60u);  // there: lane_missing
}

__device__ void different_collectives() {
    if (threadIdx.x % 32 < 16) __syncwarp();  // there: different_collectives
    else __shfl_xor_sync(0xffffffffu, 1, 1);  // here: different_collectives
}

__device__ void not_in_mask() { __ballot_sync(0xfffffffeu, 1); }  // here: not_in_mask

__device__ void barrier_number() { emu::bar_sync(16, 64); }  // here: barrier_number
__device__ void barrier_count() { emu::bar_sync(1, 33); }  // here: barrier_count
__device__ void barrier_counts() { emu::bar_sync(1, threadIdx.x < 32 ? 64 : 96); }  // here: barrier_counts
__device__ void arrives_twice() {
    emu::bar_arrive(3, 128);
    if (threadIdx.x == 7) emu::bar_arrive(3, 128);  // here: arrives_twice
}

__device__ void past_the_end(float* g, int n) { g[threadIdx.x + n] = 1.0f; }  // here: past_the_end
__device__ float far_away(const float* g, int n) { return g[(long long)n << 40]; }  // here: far_away
__device__ void before_the_start(float* g, int n) { g[-2000 - n] = 1.0f; }  // here: before_the_start
__device__ float null_pointer(const float* g_null) { return g_null[threadIdx.x]; }  // here: null_pointer
__device__ void writes_const(const float* g_const) { const_cast<float*>(g_const)[3] = 0.0f; }  // here: writes_const
__device__ void just_past(float* g, int n) {
    if (threadIdx.x == 0) g[n] = 1.0f;  // here: just_past
}

__device__ void past_static(int n) {
    __shared__ float s_last[8];
    s_last[n] = 2.0f;  // here: past_static
    __syncthreads();
    if (s_last[threadIdx.x % 8] == 5.0f) __trap();
}
__device__ void past_dynamic(int n) {
    reinterpret_cast<float*>(smem_raw)[n * 64] = 1.0f;  // here: past_dynamic
}
__device__ void just_past_dynamic(int n) {
    if (threadIdx.x == 0) reinterpret_cast<float*>(smem_raw)[n] = 1.0f;  // here: just_past_dynamic
}
__device__ float uninitialised(int n) {
    __shared__ float s_half[128];
    if (threadIdx.x < n) s_half[threadIdx.x] = 1.0f;
    __syncthreads();
    return s_half[127 - threadIdx.x];  // here: uninitialised
}
// No __syncthreads between writing and reading.
__device__ float missing_barrier() {
    __shared__ float s_values[128];
    s_values[threadIdx.x] = 1.0f;
    return s_values[127 - threadIdx.x];  // here: missing_barrier
}

__device__ float4 misaligned_float4(const float* g, int n) {
    return *reinterpret_cast<const float4*>(g + n);  // here: misaligned_float4
}
__device__ void misaligned_shared(int n) {
    *reinterpret_cast<float2*>(smem_raw + n) = float2(1.0f, 2.0f);  // here: misaligned_shared
}
__device__ void misaligned_atomic(float* g, int n) {
    atomicAdd(reinterpret_cast<int*>(reinterpret_cast<char*>(g) + n), 1);  // here: misaligned_atomic
}
__device__ void atomic_outside(float* g, int n) { atomicAdd(g + n, 1.0f); }  // here: atomic_outside

__device__ __noinline__ int recurse(volatile int* g, int depth) {
    volatile int local[64];
    local[depth % 64] = depth;  // here: stack
    return *g == -1 ? 0 : recurse(g, depth + 1) + local[3];
}

__device__ int divide(int n, int zero) { return n / zero; }  // here: divide

__device__ void asserts(int n) {
    assert(n != int(threadIdx.x));  // here: asserts
}
__device__ void traps(int n) {
    if (threadIdx.x == n) __trap();  // here: traps
}

// The first block takes longest to fail.
__device__ void fails_late() {
    for (unsigned i = 0; i < 1000 * (gridDim.x - blockIdx.x); ++i) __nanosleep(100);
    __trap();  // here: fails_late
}

__device__ void waits_forever(float* g) {
    while (atomicAdd(g, 0.0f) >= 0.0f) __nanosleep(100);  // here: waits_forever
}
__device__ void spins_forever(float* g) {
    while (*(volatile float*)g >= 0.0f) {}  // here: spins_forever
}

enum Mistake {
    NONE, UNEQUAL_BARRIERS, HALF_A_WARP, LANE_MISSING, DIFFERENT_COLLECTIVES, NOT_IN_MASK, BARRIER_NUMBER, BARRIER_COUNT,
    BARRIER_COUNTS, ARRIVES_TWICE, PAST_THE_END, FAR_AWAY, BEFORE_THE_START, NULL_POINTER, WRITES_CONST, JUST_PAST,
    PAST_STATIC, PAST_DYNAMIC, JUST_PAST_DYNAMIC, UNINITIALISED, MISSING_BARRIER, MISALIGNED_FLOAT4,
    MISALIGNED_SHARED, MISALIGNED_ATOMIC, ATOMIC_OUTSIDE, STACK, DIVIDE, ASSERTS, TRAPS, WAITS_FOREVER, SPINS_FOREVER,
    FAILS_LATE,
};

// block: which one makes the mistake, -1 for all. n: a number the compiler does not know, chosen by the test.
__global__ void mistake_kernel(int mistake, int block, float* g, const float* g_const, const float* g_null, int n) {
    if (block < 0 || int(blockIdx.x) == block) switch (mistake) {
        case UNEQUAL_BARRIERS: unequal_barriers(); break;
        case HALF_A_WARP: half_a_warp(); break;
        case LANE_MISSING: lane_missing(n); break;
        case DIFFERENT_COLLECTIVES: different_collectives(); break;
        case NOT_IN_MASK: not_in_mask(); break;
        case BARRIER_NUMBER: barrier_number(); break;
        case BARRIER_COUNT: barrier_count(); break;
        case BARRIER_COUNTS: barrier_counts(); break;
        case ARRIVES_TWICE: arrives_twice(); break;
        case PAST_THE_END: past_the_end(g, n); break;
        case FAR_AWAY: g[0] = far_away(g_const, n); break;
        case BEFORE_THE_START: before_the_start(g, n); break;
        case NULL_POINTER: g[0] = null_pointer(g_null); break;
        case WRITES_CONST: writes_const(g_const); break;
        case JUST_PAST: just_past(g, n); break;
        case PAST_STATIC: past_static(n); break;
        case PAST_DYNAMIC: past_dynamic(n); break;
        case JUST_PAST_DYNAMIC: just_past_dynamic(n); break;
        case UNINITIALISED: g[threadIdx.x] = uninitialised(n); break;
        case MISSING_BARRIER: g[threadIdx.x] = missing_barrier(); break;
        case MISALIGNED_FLOAT4: g[0] = misaligned_float4(g_const, n).w; break;
        case MISALIGNED_SHARED: misaligned_shared(n); break;
        case MISALIGNED_ATOMIC: misaligned_atomic(g, n); break;
        case ATOMIC_OUTSIDE: atomic_outside(g, n); break;
        case STACK: g[0] = recurse(reinterpret_cast<volatile int*>(g), n); break;
        case DIVIDE: g[0] = divide(n, int(g_const[0])); break;
        case ASSERTS: asserts(n); break;
        case TRAPS: traps(n); break;
        case WAITS_FOREVER: waits_forever(g); break;
        case SPINS_FOREVER: spins_forever(g); break;
        case FAILS_LATE: fails_late(); break;
        default: g[threadIdx.x] = float(n);
    }
}
