#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

template <class Element>
constexpr emu::ptx::Format format_of = same_type<Element, __nv_bfloat16> ? emu::ptx::Format::bf16
                                       : same_type<Element, __half>      ? emu::ptx::Format::f16
                                                                         : emu::ptx::Format::e4m3;

template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
    (emu::ptx::wgmma_hand_over(registers, sizeof registers), ...);
    emu::ptx::wgmma_fence();
}
__device__ __forceinline__ void wgmma_commit() { emu::ptx::wgmma_commit(); }

template <int PENDING, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
    static_assert(0 <= PENDING && PENDING <= 7, "0 to 7 groups");
    emu::ptx::wgmma_wait(PENDING);
    (emu::ptx::wgmma_check_free(registers), ...);
}

template <int N, class Element, Major A_MAJOR = K_MAJOR, Major B_MAJOR = K_MAJOR>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], MatrixDescriptor a, MatrixDescriptor b,
                                         bool accumulate = true) {
    check_wgmma<N, Element, A_MAJOR, B_MAJOR>();
    emu::ptx::wgmma({d, nullptr, a.bits, b.bits, N, format_of<Element>, A_MAJOR == MN_MAJOR, B_MAJOR == MN_MAJOR,
                     accumulate});
}

template <int N, class Element, Major B_MAJOR = K_MAJOR>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], MatrixDescriptor b,
                                         bool accumulate = true) {
    check_wgmma<N, Element, K_MAJOR, B_MAJOR>();
    emu::ptx::wgmma({d, a, 0, b.bits, N, format_of<Element>, false, B_MAJOR == MN_MAJOR, accumulate});
}

}  // namespace ptx
