// Generated from nbs/85_counters.ipynb: edit the notebook, not this file.
// Architectures: sm_75 sm_80 sm_90a

// Accesses of one pattern each, to compare the emulator's counts with the chip's counters. One warp a block.
#include "common/ptx/ldmatrix.h"

// 32 elements `STRIDE` apart from shared memory; the tile is filled in order.
template <class Element, int STRIDE>
__global__ void shared_read_kernel(const void* in, void* out) {
    const Element* g_in = static_cast<const Element*>(in);
    Element* g_out = static_cast<Element*>(out);
    __shared__ Element s_tile[32 * STRIDE];
    const int lane = threadIdx.x;
    for (int i = lane; i < 32 * STRIDE; i += 32) s_tile[i] = g_in[i];
    __syncthreads();  // the tile is written before lanes read what others wrote
    g_out[blockIdx.x * 32 + lane] = s_tile[lane * STRIDE];
}

// 32 elements `STRIDE` apart into shared memory; what lies there in order is read.
template <class Element, int STRIDE>
__global__ void shared_write_kernel(const void* in, void* out) {
    const Element* g_in = static_cast<const Element*>(in);
    Element* g_out = static_cast<Element*>(out);
    __shared__ Element s_tile[32 * STRIDE];
    const int lane = threadIdx.x;
    s_tile[lane * STRIDE] = g_in[blockIdx.x * 32 + lane];
    __syncthreads();  // all lanes have written before one reads another's element
    if (lane % STRIDE == 0) g_out[blockIdx.x * 32 + lane] = s_tile[lane];
}

// Every lane reads the element that `g_where` names: broadcasts, permutations, anything.
__global__ void shared_gather_kernel(const void* in, void* out, const int* g_where) {
    const float* g_in = static_cast<const float*>(in);
    float* g_out = static_cast<float*>(out);
    __shared__ float s_tile[1024];
    const int lane = threadIdx.x;
    for (int i = lane; i < 1024; i += 32) s_tile[i] = g_in[i];
    __syncthreads();  // the tile is written before a lane reads anywhere in it
    g_out[blockIdx.x * 32 + lane] = s_tile[g_where[lane]];
}

enum Layout { PLAIN, PADDED, SWIZZLED };

template <Layout LAYOUT>
__global__ void transpose_kernel(const void* in, void* out) {
    const float* g_in = static_cast<const float*>(in);
    float* g_out = static_cast<float*>(out);
    constexpr int PITCH = LAYOUT == PADDED ? 33 : 32;
    __shared__ float s_tile[32 * PITCH];
    const int lane = threadIdx.x;
    auto at = [](int row, int column) { return row * PITCH + (LAYOUT == SWIZZLED ? column ^ row : column); };
    g_in += blockIdx.x * 1024;
    g_out += blockIdx.x * 1024;
    for (int row = 0; row < 32; ++row) s_tile[at(row, lane)] = g_in[row * 32 + lane];
    __syncthreads();  // all rows are written before columns are read
    for (int row = 0; row < 32; ++row) g_out[row * 32 + lane] = s_tile[at(lane, row)];
}

// A warp's ldmatrix_x4 of 32 rows, for each of the eight 16-byte chunks of a row of 128 bytes.
template <Layout LAYOUT>
__global__ void ldmatrix_kernel(const void* in, void* out) {
    const uint4* g_in = static_cast<const uint4*>(in);
    uint4* g_out = static_cast<uint4*>(out);
    constexpr int PITCH = LAYOUT == PADDED ? 9 : 8;  // chunks
    __shared__ uint4 s_tile[32 * PITCH];
    const int lane = threadIdx.x;
    auto at = [](int row, int chunk) { return row * PITCH + (LAYOUT == SWIZZLED ? chunk ^ row % 8 : chunk); };
    for (int i = lane; i < 256; i += 32) s_tile[at(i / 8, i % 8)] = g_in[i];
    __syncthreads();  // all chunks are written before any is read
    for (int chunk = 0; chunk < 8; ++chunk) {
        uint32_t r[4];
        ptx::ldmatrix_x4(r, &s_tile[at(lane, chunk)]);
        g_out[(blockIdx.x * 8 + chunk) * 32 + lane] = make_uint4(r[0], r[1], r[2], r[3]);
    }
}

// Elements `STRIDE` apart, from `first` on; written in order.
template <class Element, int STRIDE>
__global__ void global_read_kernel(const void* in, void* out, int first) {
    const Element* g_in = static_cast<const Element*>(in);
    Element* g_out = static_cast<Element*>(out);
    const int i = blockIdx.x * 32 + threadIdx.x;
    g_out[i] = g_in[first + i * STRIDE];
}

template <class Element, int STRIDE>
__global__ void global_write_kernel(const void* in, void* out, int first) {
    const Element* g_in = static_cast<const Element*>(in);
    Element* g_out = static_cast<Element*>(out);
    const int i = blockIdx.x * 32 + threadIdx.x;
    g_out[first + i * STRIDE] = g_in[i];
}
