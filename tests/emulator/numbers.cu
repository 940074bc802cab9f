// bfloat16 and half: conversions over every bit pattern, arithmetic over pairs.
// Architectures: sm_90a
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> __device__ unsigned short bits_of(T x) { return *reinterpret_cast<unsigned short*>(&x); }
template <class T> __device__ T of_bits(unsigned short bits) { return *reinterpret_cast<T*>(&bits); }

template <class T>
__global__ void widen_kernel(float* g_out) {  // grid x block = 65536
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    g_out[i] = float(of_bits<T>((unsigned short)i));
}

template <class T>
__global__ void round_kernel(const float* g_in, const double* g_double, short* g_out, short* g_from_double, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        g_out[i] = bits_of(T(g_in[i]));
        g_from_double[i] = bits_of(T(g_double[i]));
    }
}

// Rows: add, sub, mul, div, fma, max, min, neg, abs, equal, less, sqrt.
template <class T>
__global__ void arithmetic_kernel(const short* g_a, const short* g_b, const short* g_c, short* g_out, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const T a = of_bits<T>(g_a[i]), b = of_bits<T>(g_b[i]), c = of_bits<T>(g_c[i]);
        g_out[i] = bits_of(a + b);
        g_out[n + i] = bits_of(__hsub(a, b));
        g_out[2 * n + i] = bits_of(a * b);
        g_out[3 * n + i] = bits_of(a / b);
        g_out[4 * n + i] = bits_of(__hfma(a, b, c));
        g_out[5 * n + i] = bits_of(__hmax(a, b));
        g_out[6 * n + i] = bits_of(__hmin(a, b));
        g_out[7 * n + i] = bits_of(-a);
        g_out[8 * n + i] = bits_of(__habs(a));
        g_out[9 * n + i] = a == b;
        g_out[10 * n + i] = a < b;
        g_out[11 * n + i] = bits_of(hsqrt(a));
    }
}

// The two-element types agree with the scalar ones, and move as one access.
__global__ void pairs_kernel(const __nv_bfloat16* bf16, const __half* half_, float* out, __nv_bfloat16* bf16_out, __half* half_out) {
    const __nv_bfloat162* g_bf16 = reinterpret_cast<const __nv_bfloat162*>(bf16);
    const __half2* g_half = reinterpret_cast<const __half2*>(half_);
    float2* g_out = reinterpret_cast<float2*>(out);
    __nv_bfloat162* g_bf16_out = reinterpret_cast<__nv_bfloat162*>(bf16_out);
    __half2* g_half_out = reinterpret_cast<__half2*>(half_out);
    const __nv_bfloat162 a = g_bf16[0], b = g_bf16[1];
    const __half2 c = g_half[0], d = g_half[1];
    g_out[0] = __bfloat1622float2(__hfma2(a, b, __float2bfloat162_rn(1.0f)));
    g_out[1] = __bfloat1622float2(a * b + a);
    g_out[2] = float2(__low2float(b), __high2float(b));
    g_out[3] = __half22float2(__hfma2(c, d, __float2half2_rn(1.0f)));
    g_out[4] = __half22float2(__hmax2(c, d));
    g_out[5] = float2(float(__low2half(d)), float(__high2half(d)));
    g_bf16_out[0] = __floats2bfloat162_rn(1.5f, -2.5f);
    g_half_out[0] = __floats2half2_rn(1.5f, -2.5f);
    atomicAdd(&g_bf16_out[1].x, __float2bfloat16(3.0f));
    atomicAdd(&g_half_out[1], c);
}

// Integer and bit functions: one row a function.
__global__ void bits_kernel(const int* g_in, int* g_out, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const int x = g_in[i];
        g_out[i] = __popc(x);
        g_out[n + i] = __ffs(x);
        g_out[2 * n + i] = __clz(x);
        g_out[3 * n + i] = __brev(x);
        g_out[4 * n + i] = __float_as_int(__int_as_float(x));
        g_out[5 * n + i] = __byte_perm(x, 0x04030201, 0x7c30);
        g_out[6 * n + i] = int(unsigned(max(x, 3)) - unsigned(min(x, 3)));
        g_out[7 * n + i] = __mulhi(x, 123456789);
        g_out[8 * n + i] = __funnelshift_l(x, 0x12345678, 12);
        g_out[9 * n + i] = __float2int_rn(x * 0.5f);
    }
}

__global__ void float_kernel(const float* g_in, float* g_out, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const float x = g_in[i];
        g_out[i] = __expf(x);
        g_out[n + i] = exp2f(x);
        g_out[2 * n + i] = __logf(fabsf(x));
        g_out[3 * n + i] = rsqrtf(fabsf(x));
        g_out[4 * n + i] = fmaf(x, x, 1.0f);
        g_out[5 * n + i] = __fdividef(x, 3.0f);
        g_out[6 * n + i] = fmaxf(x, NAN);
        g_out[7 * n + i] = isnan(x - x) ? -INFINITY : floorf(x);
    }
}
