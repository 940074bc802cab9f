// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// setmaxnreg: warpgroups of one block share its registers unequally. sm_90a.
//
// The kernel needs __launch_bounds__(threads, blocks): every warp starts with the same number of registers, which the
// compiler must know; it uses more only behind reg_alloc. All four warps of a warpgroup call it.
#pragma once
#include "common/ptx/basic.h"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "common/ptx/register.h needs sm_90a"
#endif

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/register.h"
#else
namespace ptx {

// Grow to COUNT registers a thread. Waits until other warpgroups have given enough back.
template <int COUNT>
__device__ __forceinline__ void reg_alloc() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24 to 256 registers, a multiple of 8");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Shrink to COUNT registers a thread and give the rest back to the block.
template <int COUNT>
__device__ __forceinline__ void reg_dealloc() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24 to 256 registers, a multiple of 8");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
