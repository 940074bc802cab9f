#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ uint4 ld_nc_v4(const void* g_pointer) { return *static_cast<const uint4*>(g_pointer); }
__device__ __forceinline__ void st_v4(void* g_pointer, uint4 value) { *static_cast<uint4*>(g_pointer) = value; }
__device__ __forceinline__ int ld_acquire(const int* g_flag) { return emu::ptx::ld_acquire(g_flag); }
__device__ __forceinline__ void st_release(int* g_flag, int value) { emu::ptx::st_release(g_flag, value); }
__device__ __forceinline__ void red_release(int* g_counter, int value) { emu::ptx::red_release(g_counter, value); }

}  // namespace ptx
