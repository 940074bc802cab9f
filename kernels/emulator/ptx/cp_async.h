#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ void cp_async_16(void* s_destination, const void* g_source, bool valid = true) {
    emu::ptx::cp_async(s_destination, g_source, 16, valid);
}
__device__ __forceinline__ void cp_async_8(void* s_destination, const void* g_source, bool valid = true) {
    emu::ptx::cp_async(s_destination, g_source, 8, valid);
}
__device__ __forceinline__ void cp_async_4(void* s_destination, const void* g_source, bool valid = true) {
    emu::ptx::cp_async(s_destination, g_source, 4, valid);
}
__device__ __forceinline__ void cp_async_commit() { emu::ptx::cp_async_commit(); }
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    static_assert(PENDING >= 0, "a number of groups");
    emu::ptx::cp_async_wait(PENDING);
}
__device__ __forceinline__ void cp_async_mbar_arrive(uint64_t* s_barrier) { emu::ptx::cp_async_mbar_arrive(s_barrier); }

}  // namespace ptx
