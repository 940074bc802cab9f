#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

template <int COUNT>
__device__ __forceinline__ void reg_alloc() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24 to 256 registers, a multiple of 8");
    emu::ptx::set_max_registers(COUNT, true);
}
template <int COUNT>
__device__ __forceinline__ void reg_dealloc() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24 to 256 registers, a multiple of 8");
    emu::ptx::set_max_registers(COUNT, false);
}

}  // namespace ptx
