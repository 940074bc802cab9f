// Generated from nbs/47_overlap.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// What a thread holds of a product of WGMMA: r[4i], r[4i + 1] are columns 8i + 2 (lane % 4) and the next of row
// 16 warp + lane / 4; r[4i + 2], r[4i + 3] are the same columns eight rows below.
#pragma once
#include "common/ptx/convert.h"
#include "common/ptx/ldmatrix.h"

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

// Of each of the two rows only the first visible[...] columns count.
template <int COUNT>
__device__ __forceinline__ void mask_columns(float (&r)[COUNT], const int (&visible)[2]) {
    const int first = 2 * (threadIdx.x % 4);
    #pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const int column = i / 4 * 8 + i % 2;
        if (column >= visible[i / 2 % 2] - first) r[i] = minus_infinity();
    }
}

template <int COUNT>
__device__ __forceinline__ void scale_rows(float (&r)[COUNT], const float (&factor)[2]) {
    #pragma unroll
    for (int i = 0; i < COUNT; ++i) r[i] *= factor[i / 2 % 2];
}

// Round to pairs, in the order in which WGMMA reads a left operand from registers.
template <class Element, int COUNT>
__device__ __forceinline__ void pack_pairs(uint32_t (&pairs)[COUNT], const float (&r)[2 * COUNT]) {
    #pragma unroll
    for (int i = 0; i < COUNT; ++i) pairs[i] = ptx::pack<Element>(r[2 * i], r[2 * i + 1]);
}

// Write this warp's sixteen rows, rounded and multiplied by a factor for each row, into panels swizzled by 128 bytes.
template <class Element, int COUNT, int PANELS, int ROWS>
__device__ __forceinline__ void write_rows(Element (&s_panels)[PANELS][ROWS][64], int first_row, const float (&r)[COUNT],
                                           const float (&factor)[2]) {
    const int lane = threadIdx.x % 32, s_row = first_row + lane % 16;
    #pragma unroll
    for (int i = 0; i < COUNT; i += 8) {  // 16 columns
        uint32_t pairs[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) pairs[j] = ptx::pack<Element>(r[i + 2 * j] * factor[j % 2], r[i + 2 * j + 1] * factor[j % 2]);
        const int chunk = i / 4 % 8 + lane / 16;
        ptx::stmatrix_x4(&s_panels[i / 32][s_row][(chunk ^ s_row % 8) * 8], pairs);
    }
}
