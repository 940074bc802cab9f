#pragma once

namespace ptx {

__device__ __forceinline__ void bar_sync(int id, int threads) { emu::bar_sync(id, threads); }
__device__ __forceinline__ void bar_arrive(int id, int threads) { emu::bar_arrive(id, threads); }

}  // namespace ptx
