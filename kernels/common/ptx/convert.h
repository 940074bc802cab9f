// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_89 sm_90a

// Rounding pairs of floats to 16 and 8 bits, and the special-function unit's 2^x and 1/x.
// sm_75: ex2, rcp, fp16. sm_80: bf16. sm_89: e4m3.
#pragma once
#include "common/ptx/basic.h"

struct __half;
struct __nv_bfloat16;

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/convert.h"
#else
namespace ptx {

// 2^x, relative error below 2^-22; denormal results are 0. ex2(-inf) = 0.
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x, at most 1 ulp off.
__device__ __forceinline__ float rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two floats rounded to nearest even; `low` in bits 0-15.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    uint32_t packed;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
    asm("{\n"
        ".reg .f16 low, high;\n"
        "cvt.rn.f16.f32 low, %1;\n"
        "cvt.rn.f16.f32 high, %2;\n"
        "mov.b32 %0, {low, high};\n"
        "}\n"
        : "=r"(packed)
        : "f"(low), "f"(high));
#endif
    return packed;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

#endif  // sm_80

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890

// Two floats to e4m3 in 16 bits; beyond the largest value, 448, they saturate.
__device__ __forceinline__ uint16_t pack_e4m3x2(float low, float high) {
    uint16_t packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
}

// Two e4m3 to two fp16, exactly.
__device__ __forceinline__ uint32_t unpack_e4m3x2(uint16_t packed) {
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(packed));
    return halves;
}

#endif  // sm_89
}  // namespace ptx
#endif  // FLASHMOE_EMULATOR

namespace ptx {

// pack_bf16 or pack_f16, for kernels that are templates over their element.
template <class Element>
__device__ uint32_t pack(float low, float high) = delete;
template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) { return pack_f16(low, high); }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) { return pack_bf16(low, high); }
#endif

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890

// Four floats to e4m3, `x0` in bits 0-7.
__device__ __forceinline__ uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
    return pack_e4m3x2(x0, x1) | static_cast<uint32_t>(pack_e4m3x2(x2, x3)) << 16;
}

#endif  // sm_89
}  // namespace ptx
