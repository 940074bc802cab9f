#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], const void* s_row) { emu::ptx::ldmatrix(r, s_row, 1, false); }
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* s_row) { emu::ptx::ldmatrix(r, s_row, 2, false); }
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* s_row) { emu::ptx::ldmatrix(r, s_row, 4, false); }
__device__ __forceinline__ void ldmatrix_x1_trans(uint32_t (&r)[1], const void* s_row) {
    emu::ptx::ldmatrix(r, s_row, 1, true);
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* s_row) {
    emu::ptx::ldmatrix(r, s_row, 2, true);
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* s_row) {
    emu::ptx::ldmatrix(r, s_row, 4, true);
}

__device__ __forceinline__ void stmatrix_x1(void* s_row, const uint32_t (&r)[1]) { emu::ptx::stmatrix(s_row, r, 1, false); }
__device__ __forceinline__ void stmatrix_x2(void* s_row, const uint32_t (&r)[2]) { emu::ptx::stmatrix(s_row, r, 2, false); }
__device__ __forceinline__ void stmatrix_x4(void* s_row, const uint32_t (&r)[4]) { emu::ptx::stmatrix(s_row, r, 4, false); }
__device__ __forceinline__ void stmatrix_x1_trans(void* s_row, const uint32_t (&r)[1]) {
    emu::ptx::stmatrix(s_row, r, 1, true);
}
__device__ __forceinline__ void stmatrix_x2_trans(void* s_row, const uint32_t (&r)[2]) {
    emu::ptx::stmatrix(s_row, r, 2, true);
}
__device__ __forceinline__ void stmatrix_x4_trans(void* s_row, const uint32_t (&r)[4]) {
    emu::ptx::stmatrix(s_row, r, 4, true);
}

}  // namespace ptx
