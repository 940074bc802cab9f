#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ void mma_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
    emu::ptx::mma(d, a, b, 8, emu::ptx::Format::f16);
}
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::ptx::mma(d, a, b, 16, emu::ptx::Format::bf16);
}
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::ptx::mma(d, a, b, 16, emu::ptx::Format::f16);
}
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::ptx::mma(d, a, b, 32, emu::ptx::Format::e4m3);
}

}  // namespace ptx
