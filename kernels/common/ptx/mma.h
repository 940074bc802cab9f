// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_89 sm_90a

// mma.sync: one warp multiplies two small matrices held in its registers and adds them to a third, in fp32.
// fp16 k8: sm_75. bf16 and fp16 k16: sm_80. e4m3 k32: sm_89.
//
// D[16][8] += A[16][k] B[k][8]. Lane l = 4g + t holds
//   A: bytes 4t to 4t+3 of rows g and g+8, and the same 16 bytes further on
//   B: bytes 4t to 4t+3 of column g, and the same 16 bytes further on
//   D: [g][2t], [g][2t+1], [g+8][2t], [g+8][2t+1]
#pragma once
#include "common/ptx/basic.h"

struct __half;
struct __nv_bfloat16;
struct __nv_fp8_e4m3;

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/mma.h"
#else
namespace ptx {

__device__ __forceinline__ void mma_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif  // sm_80

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890

__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif  // sm_89
}  // namespace ptx
#endif  // FLASHMOE_EMULATOR

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
namespace ptx {

// The k16 instruction of an element type, for kernels that are templates over it.
template <class Element>
__device__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) = delete;
template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                            const uint32_t (&b)[2]) {
    mma_m16n8k16_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16_f16(d, a, b);
}

}  // namespace ptx
#endif  // sm_80
