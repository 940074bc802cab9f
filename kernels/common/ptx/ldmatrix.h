// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// ldmatrix and stmatrix: a warp moves 8x8 matrices of 16-bit elements between shared memory and the registers in which
// the tensor cores want them. ldmatrix: sm_75. stmatrix: sm_90.
//
// A row is 16 contiguous bytes, 16-byte aligned. Lanes 8i ... 8i+7 pass the addresses of the rows of matrix i; lane l
// receives (or gives) elements [l/4][2(l%4)] and [l/4][2(l%4)+1] of each matrix, or the transposed pair.
#pragma once
#include "common/ptx/basic.h"

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/ldmatrix.h"
#else
namespace ptx {

__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], const void* s_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(smem_u32(s_row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x1_trans(uint32_t (&r)[1], const void* s_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(smem_u32(s_row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* s_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_u32(s_row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* s_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_u32(s_row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* s_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(s_row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* s_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(s_row))
                 : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void stmatrix_x1(void* s_row, const uint32_t (&r)[1]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(smem_u32(s_row)), "r"(r[0]) : "memory");
}

__device__ __forceinline__ void stmatrix_x1_trans(void* s_row, const uint32_t (&r)[1]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(smem_u32(s_row)), "r"(r[0])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x2(void* s_row, const uint32_t (&r)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(smem_u32(s_row)), "r"(r[0]), "r"(r[1])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x2_trans(void* s_row, const uint32_t (&r)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(smem_u32(s_row)), "r"(r[0]),
                 "r"(r[1])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x4(void* s_row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_u32(s_row)), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x4_trans(void* s_row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_u32(s_row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

#endif  // sm_90
}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
