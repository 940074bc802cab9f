// CUDA's arithmetic functions. The C ones come from the host's libm, correctly rounded or nearly so; CUDA's own are within
// a few units in the last place of them. The fast ones (__expf) are as exact as the others here, and are not on a GPU.
#pragma once

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))

#define EMU_LIBM1(name) extern "C" float name##f(float) noexcept; extern "C" double name(double) noexcept;
#define EMU_LIBM2(name) extern "C" float name##f(float, float) noexcept; extern "C" double name(double, double) noexcept;
EMU_LIBM1(exp) EMU_LIBM1(exp2) EMU_LIBM1(exp10) EMU_LIBM1(expm1) EMU_LIBM1(log) EMU_LIBM1(log2) EMU_LIBM1(log10) EMU_LIBM1(log1p)
EMU_LIBM1(sqrt) EMU_LIBM1(cbrt) EMU_LIBM1(sin) EMU_LIBM1(cos) EMU_LIBM1(tan) EMU_LIBM1(tanh) EMU_LIBM1(erf) EMU_LIBM1(erfc)
EMU_LIBM1(floor) EMU_LIBM1(ceil) EMU_LIBM1(trunc) EMU_LIBM1(round) EMU_LIBM1(rint) EMU_LIBM1(nearbyint) EMU_LIBM1(fabs)
EMU_LIBM2(pow) EMU_LIBM2(fmod) EMU_LIBM2(fmax) EMU_LIBM2(fmin) EMU_LIBM2(copysign) EMU_LIBM2(atan2)
extern "C" float fmaf(float, float, float) noexcept;
extern "C" double fma(double, double, double) noexcept;
extern "C" float ldexpf(float, int) noexcept;
extern "C" double ldexp(double, int) noexcept;
extern "C" int abs(int) noexcept;
extern "C" long long llabs(long long) noexcept;

#define EMU_FLOAT1(name) EMU_DEVICE float name(float x) { return name##f(x); }
#define EMU_FLOAT2(name) EMU_DEVICE float name(float x, float y) { return name##f(x, y); }
EMU_FLOAT1(exp) EMU_FLOAT1(exp2) EMU_FLOAT1(log) EMU_FLOAT1(log2) EMU_FLOAT1(sqrt) EMU_FLOAT1(sin) EMU_FLOAT1(cos) EMU_FLOAT1(tanh)
EMU_FLOAT1(floor) EMU_FLOAT1(ceil) EMU_FLOAT1(fabs) EMU_FLOAT2(pow) EMU_FLOAT2(fmax) EMU_FLOAT2(fmin)
EMU_DEVICE float abs(float x) { return __builtin_fabsf(x); }
EMU_DEVICE double abs(double x) { return __builtin_fabs(x); }
EMU_DEVICE long long abs(long long x) { return llabs(x); }
EMU_DEVICE float rsqrtf(float x) { return float(1.0 / __builtin_sqrt(double(x))); }
EMU_DEVICE double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
EMU_DEVICE bool isnan(float x) { return __builtin_isnan(x); }
EMU_DEVICE bool isnan(double x) { return __builtin_isnan(x); }
EMU_DEVICE bool isinf(float x) { return __builtin_isinf(x); }
EMU_DEVICE bool isinf(double x) { return __builtin_isinf(x); }
EMU_DEVICE bool isfinite(float x) { return __builtin_isfinite(x); }
EMU_DEVICE bool isfinite(double x) { return __builtin_isfinite(x); }

// Macros, because glibc's headers declare functions of these names.
EMU_DEVICE float emu_fast_expf(float x) { return expf(x); }
EMU_DEVICE float emu_fast_logf(float x) { return logf(x); }
EMU_DEVICE float emu_fast_sinf(float x) { return sinf(x); }
EMU_DEVICE float emu_fast_cosf(float x) { return cosf(x); }
EMU_DEVICE float emu_fast_powf(float x, float y) { return powf(x, y); }
EMU_DEVICE float emu_fast_exp10f(float x) { return exp10f(x); }
EMU_DEVICE float emu_fast_log2f(float x) { return log2f(x); }
EMU_DEVICE float emu_fast_log10f(float x) { return log10f(x); }
#define __expf emu_fast_expf
#define __logf emu_fast_logf
#define __sinf emu_fast_sinf
#define __cosf emu_fast_cosf
#define __powf emu_fast_powf
#define __exp10f emu_fast_exp10f
#define __log2f emu_fast_log2f
#define __log10f emu_fast_log10f
EMU_DEVICE float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }

// Single operations that compilers must not fuse, which -ffp-contract=off sees to anyway.
EMU_DEVICE float __fadd_rn(float x, float y) { return x + y; }
EMU_DEVICE float __fsub_rn(float x, float y) { return x - y; }
EMU_DEVICE float __fmul_rn(float x, float y) { return x * y; }
EMU_DEVICE float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
EMU_DEVICE float __fdividef(float x, float y) { return x / y; }
EMU_DEVICE float __fdiv_rn(float x, float y) { return x / y; }
EMU_DEVICE float __frcp_rn(float x) { return 1.0f / x; }
EMU_DEVICE float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
EMU_DEVICE float __frsqrt_rn(float x) { return rsqrtf(x); }

// Minimum and maximum of mixed types follow the usual conversions, as CUDA's overloads do.
template <class A, class B> EMU_DEVICE constexpr auto max(A a, B b) -> decltype(a + b) {
    typedef decltype(a + b) C;
    return C(a) < C(b) ? C(b) : C(a);
}
template <class A, class B> EMU_DEVICE constexpr auto min(A a, B b) -> decltype(a + b) {
    typedef decltype(a + b) C;
    return C(b) < C(a) ? C(b) : C(a);
}
EMU_DEVICE float max(float a, float b) { return fmaxf(a, b); }      // the number, where the other is NaN
EMU_DEVICE float min(float a, float b) { return fminf(a, b); }
EMU_DEVICE double max(double a, double b) { return fmax(a, b); }
EMU_DEVICE double min(double a, double b) { return fmin(a, b); }

// Bits.
EMU_DEVICE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_DEVICE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_DEVICE int __ffs(int x) { return __builtin_ffs(x); }
EMU_DEVICE int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_DEVICE int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
EMU_DEVICE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
EMU_DEVICE unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
EMU_DEVICE unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned byte = unsigned(bytes >> (selector >> 4 * i & 7) * 8) & 0xff;
        if (selector >> 4 * i & 8) byte = byte & 0x80 ? 0xff : 0;      // the sign, all over
        result |= byte << 8 * i;
    }
    return result;
}
EMU_DEVICE int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
EMU_DEVICE unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
EMU_DEVICE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
EMU_DEVICE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

template <class To, class From> EMU_DEVICE To emu_reinterpret(From from) {
    static_assert(sizeof(To) == sizeof(From), "reinterpretation keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
EMU_DEVICE unsigned __float_as_uint(float x) { return emu_reinterpret<unsigned>(x); }
EMU_DEVICE int __float_as_int(float x) { return emu_reinterpret<int>(x); }
EMU_DEVICE float __uint_as_float(unsigned x) { return emu_reinterpret<float>(x); }
EMU_DEVICE float __int_as_float(int x) { return emu_reinterpret<float>(x); }
EMU_DEVICE long long __double_as_longlong(double x) { return emu_reinterpret<long long>(x); }
EMU_DEVICE double __longlong_as_double(long long x) { return emu_reinterpret<double>(x); }

// Conversions with an explicit rounding: rn to nearest even, rz towards zero, rd down, ru up.
EMU_DEVICE int __float2int_rn(float x) { return int(__builtin_rintf(x)); }
EMU_DEVICE int __float2int_rz(float x) { return int(x); }
EMU_DEVICE int __float2int_rd(float x) { return int(floorf(x)); }
EMU_DEVICE int __float2int_ru(float x) { return int(ceilf(x)); }
EMU_DEVICE float __int2float_rn(int x) { return float(x); }
EMU_DEVICE float __uint2float_rn(unsigned x) { return float(x); }
