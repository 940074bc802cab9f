#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ void bar_sync(int id, int threads) { emu::bar_sync(id, threads); }
__device__ __forceinline__ void bar_arrive(int id, int threads) { emu::bar_arrive(id, threads); }
__device__ __forceinline__ bool bar_red_or(int id, int threads, bool predicate) {
    return emu::ptx::bar_red_or(id, threads, predicate);
}

}  // namespace ptx
