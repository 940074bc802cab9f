// Arithmetic of the two 16-bit formats: every operation rounds once, to nearest even, as the hardware's do.
// cuda_fp16.h and cuda_bf16.h instantiate it under CUDA's names.
#pragma once
#include "../ptx/formats.h"

namespace emu {

// Rounding to odd first makes a second rounding harmless: the last bit remembers whether anything was lost
// (Boldo, Melquiond: Emulation of a FMA and correctly rounded sums, 2008).
inline float to_float_odd(double x) {
    float f = float(x);
    if (double(f) == x || x != x) return f;
    uint32_t bits = float_bits(f);
    if (__builtin_fabs(double(f)) > __builtin_fabs(x)) --bits;
    return bits_float(bits | 1);
}

// a * b + c for factors whose product a double holds exactly, rounded to odd.
inline double fma_odd(double a, double b, double c) {
    double product = a * b, sum = product + c, rest = sum - product;
    double lost = (product - (sum - rest)) + (c - rest);
    int64_t bits;
    __builtin_memcpy(&bits, &sum, 8);
    if (lost == 0 || lost != lost || bits & 1) return sum;
    bits += (lost > 0) == (sum > 0) ? 1 : -1;
    __builtin_memcpy(&sum, &bits, 8);
    return sum;
}

}  // namespace emu

// T: the type, with static T rounded(float) and operator float. T2: two of them.
#define EMU_FLOAT16_TYPE(T, T2, to_bits, from_bits)                                                        \
    struct T {                                                                                             \
        unsigned short bits;                                                                               \
        T() = default;                                                                                     \
        T(float x) : bits(emu::to_bits(x)) {}                                                              \
        T(double x) : bits(emu::to_bits(emu::to_float_odd(x))) {}                                          \
        T(int x) : T(double(x)) {}                                                                         \
        T(unsigned x) : T(double(x)) {}                                                                    \
        T(long x) : T(double(x)) {}                                                                        \
        T(unsigned long x) : T(double(x)) {}                                                               \
        T(long long x) : T(double(x)) {}                                                                   \
        T(unsigned long long x) : T(double(x)) {}                                                          \
        T(short x) : T(float(x)) {}                                                                        \
        T(unsigned short x) : T(float(x)) {}                                                               \
        operator float() const { return emu::from_bits(bits); }                                            \
        static T of_bits(unsigned short bits) { T t; t.bits = bits; return t; }                            \
    };                                                                                                     \
    struct alignas(4) T2 {                                                                                 \
        T x, y;                                                                                            \
        typedef uint32_t __attribute__((may_alias)) Wide;                                                  \
        EMU_WIDE_COPY(T2)                                                                                  \
        T2(T x, T y) : x(x), y(y) {}                                                                       \
    };

#define EMU_FLOAT16_UNARY(name, name2, T, T2, expression)                                                  \
    EMU_DEVICE T name(T a) { float x = a; return T(expression); }                                          \
    EMU_DEVICE T2 name2(T2 a) { return T2(name(a.x), name(a.y)); }

#define EMU_FLOAT16_BINARY(name, name2, T, T2, expression)                                                 \
    EMU_DEVICE T name(T a, T b) { float x = a, y = b; return T(expression); }                              \
    EMU_DEVICE T2 name2(T2 a, T2 b) { return T2(name(a.x, b.x), name(a.y, b.y)); }

#define EMU_FLOAT16_OPERATOR(op, T, T2, scalar, vector)                                                    \
    EMU_DEVICE T operator op(T a, T b) { return scalar(a, b); }                                            \
    EMU_DEVICE T2 operator op(T2 a, T2 b) { return vector(a, b); }                                         \
    EMU_DEVICE T& operator op##=(T& a, T b) { return a = scalar(a, b); }                                   \
    EMU_DEVICE T2& operator op##=(T2& a, T2 b) { return a = vector(a, b); }

#define EMU_FLOAT16_COMPARE(op, name, T)                                                                   \
    EMU_DEVICE bool name(T a, T b) { return float(a) op float(b); }                                        \
    EMU_DEVICE bool operator op(T a, T b) { return float(a) op float(b); }

#define EMU_FLOAT16_FUNCTIONS(T, T2)                                                                       \
    EMU_FLOAT16_BINARY(__hadd, __hadd2, T, T2, x + y)                                                      \
    EMU_FLOAT16_BINARY(__hsub, __hsub2, T, T2, x - y)                                                      \
    EMU_FLOAT16_BINARY(__hmul, __hmul2, T, T2, double(x) * double(y))                                      \
    EMU_FLOAT16_BINARY(__hdiv, __h2div, T, T2, double(x) / double(y))                                      \
    EMU_FLOAT16_BINARY(__hmax, __hmax2, T, T2, x != x ? y : y != y ? x : x < y || (x == y && __builtin_signbit(x)) ? y : x) \
    EMU_FLOAT16_BINARY(__hmin, __hmin2, T, T2, x != x ? y : y != y ? x : y < x || (x == y && __builtin_signbit(y)) ? y : x) \
    EMU_FLOAT16_BINARY(__hmax_nan, __hmax2_nan, T, T2, x != x || y != y ? NAN : float(__hmax(a, b)))       \
    EMU_FLOAT16_BINARY(__hmin_nan, __hmin2_nan, T, T2, x != x || y != y ? NAN : float(__hmin(a, b)))       \
    EMU_DEVICE T __hfma(T a, T b, T c) { return T(emu::fma_odd(float(a), float(b), float(c))); }           \
    EMU_DEVICE T2 __hfma2(T2 a, T2 b, T2 c) { return T2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }   \
    EMU_DEVICE T __hneg(T a) { return T::of_bits((unsigned short)(a.bits ^ 0x8000)); }                     \
    EMU_DEVICE T __habs(T a) { return T::of_bits((unsigned short)(a.bits & 0x7fff)); }                     \
    EMU_DEVICE T2 __hneg2(T2 a) { return T2(__hneg(a.x), __hneg(a.y)); }                                   \
    EMU_DEVICE T2 __habs2(T2 a) { return T2(__habs(a.x), __habs(a.y)); }                                   \
    EMU_FLOAT16_OPERATOR(+, T, T2, __hadd, __hadd2)                                                        \
    EMU_FLOAT16_OPERATOR(-, T, T2, __hsub, __hsub2)                                                        \
    EMU_FLOAT16_OPERATOR(*, T, T2, __hmul, __hmul2)                                                        \
    EMU_FLOAT16_OPERATOR(/, T, T2, __hdiv, __h2div)                                                        \
    EMU_DEVICE T operator-(T a) { return __hneg(a); }                                                      \
    EMU_DEVICE T2 operator-(T2 a) { return __hneg2(a); }                                                   \
    EMU_FLOAT16_COMPARE(==, __heq, T) EMU_FLOAT16_COMPARE(!=, __hne, T)                                    \
    EMU_FLOAT16_COMPARE(<, __hlt, T) EMU_FLOAT16_COMPARE(<=, __hle, T)                                     \
    EMU_FLOAT16_COMPARE(>, __hgt, T) EMU_FLOAT16_COMPARE(>=, __hge, T)                                     \
    EMU_DEVICE bool __hisnan(T a) { return __builtin_isnan(float(a)); }                                    \
    EMU_DEVICE int __hisinf(T a) { return __builtin_isinf_sign(float(a)); }                                \
    EMU_FLOAT16_UNARY(hexp, h2exp, T, T2, expf(x))                                                         \
    EMU_FLOAT16_UNARY(hexp2, h2exp2, T, T2, exp2f(x))                                                      \
    EMU_FLOAT16_UNARY(hexp10, h2exp10, T, T2, exp10f(x))                                                   \
    EMU_FLOAT16_UNARY(hlog, h2log, T, T2, logf(x))                                                         \
    EMU_FLOAT16_UNARY(hlog2, h2log2, T, T2, log2f(x))                                                      \
    EMU_FLOAT16_UNARY(hsqrt, h2sqrt, T, T2, __builtin_sqrtf(x))                                            \
    EMU_FLOAT16_UNARY(hrsqrt, h2rsqrt, T, T2, 1.0 / __builtin_sqrt(double(x)))                             \
    EMU_FLOAT16_UNARY(hrcp, h2rcp, T, T2, 1.0 / double(x))                                                 \
    EMU_FLOAT16_UNARY(hsin, h2sin, T, T2, sinf(x))                                                         \
    EMU_FLOAT16_UNARY(hcos, h2cos, T, T2, cosf(x))                                                         \
    EMU_FLOAT16_UNARY(htanh, h2tanh, T, T2, tanhf(x))                                                      \
    EMU_FLOAT16_UNARY(hfloor, h2floor, T, T2, floorf(x))                                                   \
    EMU_FLOAT16_UNARY(hceil, h2ceil, T, T2, ceilf(x))                                                      \
    EMU_FLOAT16_UNARY(hrint, h2rint, T, T2, rintf(x))                                                      \
    EMU_DEVICE float __low2float(T2 a) { return a.x; }                                                     \
    EMU_DEVICE float __high2float(T2 a) { return a.y; }                                                    \
    EMU_DEVICE T2 __lowhigh2highlow(T2 a) { return T2(a.y, a.x); }                                         \
    EMU_DEVICE T atomicAdd(T* address, T operand) {                                                        \
        unsigned short old = address->bits, seen;                                                          \
        for (;; old = seen) {                                                                              \
            seen = emu::atomic_compare_and_swap(&address->bits, old, __hadd(T::of_bits(old), operand).bits); \
            if (seen == old) return T::of_bits(old);                                                       \
        }                                                                                                  \
    }                                                                                                      \
    EMU_DEVICE T2 atomicAdd(T2* address, T2 operand) {                                                     \
        return T2(atomicAdd(&address->x, operand.x), atomicAdd(&address->y, operand.y));                   \
    }
