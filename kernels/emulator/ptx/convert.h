#pragma once
#include "emulator/ptx/formats.h"

namespace ptx {

__device__ __forceinline__ float ex2(float x) { return emu::flush(__builtin_exp2f(emu::flush(x))); }
__device__ __forceinline__ float rcp(float x) { return emu::flush(1.0f / emu::flush(x)); }
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    return emu::to_bf16(low) | uint32_t(emu::to_bf16(high)) << 16;
}
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    return emu::to_f16(low) | uint32_t(emu::to_f16(high)) << 16;
}
__device__ __forceinline__ uint16_t pack_e4m3x2(float low, float high) {
    return uint16_t(emu::to_e4m3(low) | emu::to_e4m3(high) << 8);
}
__device__ __forceinline__ uint32_t unpack_e4m3x2(uint16_t packed) {
    return emu::to_f16(emu::from_e4m3(uint8_t(packed))) | uint32_t(emu::to_f16(emu::from_e4m3(uint8_t(packed >> 8)))) << 16;
}

}  // namespace ptx
