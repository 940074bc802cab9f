// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// WGMMA: the 128 threads of a warpgroup multiply tiles in shared memory on the tensor cores, without waiting. sm_90a.
//
// D[64][N] += A[64][k] B[k][N], N = 8, 16, ... 256, k = 32 bytes of elements (16 bf16 or fp16, 32 e4m3), D in fp32.
// The order is wgmma_fence, any number of wgmma_ss and wgmma_rs, wgmma_commit, wgmma_wait. Between the first and the
// last the accumulators and A fragments belong to the tensor cores, and the tiles must not be written.
#pragma once
#include "common/ptx/basic.h"
#include "common/ptx/wgmma_shapes.h"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "common/ptx/wgmma.h needs sm_90a"
#endif

struct __half;
struct __nv_bfloat16;
struct __nv_fp8_e4m3;

namespace ptx {

// Which dimension of an operand is contiguous in shared memory: k, or m (of A) and n (of B).
enum Major { K_MAJOR = 0, MN_MAJOR = 1 };

// How a tile is stored: in rows of so many bytes, whose 16-byte chunks are permuted within groups of eight rows.
enum Swizzle { SWIZZLE_NONE = 0, SWIZZLE_128B = 1, SWIZZLE_64B = 2, SWIZZLE_32B = 3 };

// The bytes of a row: 128, 64, 32, or 16 where nothing is permuted.
__device__ constexpr int swizzle_span(Swizzle swizzle) { return swizzle == SWIZZLE_NONE ? 16 : 256 >> swizzle; }

// The 64 bits by which WGMMA finds a tile in shared memory. Addresses and offsets are multiples of 16 bytes.
struct MatrixDescriptor {
    uint64_t bits;

    __device__ __forceinline__ MatrixDescriptor(const void* s_tile, Swizzle swizzle, int leading_bytes,
                                                int stride_bytes)
        : bits(uint64_t(smem_u32(s_tile) >> 4) | uint64_t(leading_bytes >> 4) << 16 |
               uint64_t(stride_bytes >> 4) << 32 | uint64_t(swizzle) << 62) {}

    __device__ uint32_t start_address() const { return bits << 4 & 0x3fff0; }
    __device__ uint32_t leading_bytes() const { return bits >> 12 & 0x3fff0; }
    __device__ uint32_t stride_bytes() const { return bits >> 28 & 0x3fff0; }
    __device__ uint32_t base_offset() const { return bits >> 49 & 7; }
    __device__ Swizzle swizzle() const { return Swizzle(bits >> 62); }

    // The same tile, `bytes` further on. Only the low word holds an address.
    __device__ __forceinline__ MatrixDescriptor operator+(int bytes) const {
        MatrixDescriptor moved = *this;
        moved.bits = bits >> 32 << 32 | uint32_t(uint32_t(bits) + (bytes >> 4));
        return moved;
    }
};

template <class, class> inline constexpr bool same_type = false;
template <class T> inline constexpr bool same_type<T, T> = true;

// What the instruction can do, checked at compile time on both backends.
template <int N, class Element, Major A_MAJOR, Major B_MAJOR>
__device__ constexpr void check_wgmma() {
    constexpr bool e4m3 = same_type<Element, __nv_fp8_e4m3>;
    static_assert(N % 8 == 0 && 8 <= N && N <= 256, "N is 8, 16, ... 256");
    static_assert(e4m3 || same_type<Element, __nv_bfloat16> || same_type<Element, __half>, "bf16, fp16 or e4m3");
    static_assert(!e4m3 || (A_MAJOR == K_MAJOR && B_MAJOR == K_MAJOR), "8-bit operands are K-major");
}

// A tile of rows of k, each one swizzle span wide and row after row: row r starts at r * span. The next k step of the
// same rows is `+ 32`, within the span.
__device__ __forceinline__ MatrixDescriptor k_major(const void* s_tile, Swizzle swizzle = SWIZZLE_128B) {
    return MatrixDescriptor(s_tile, swizzle, 16, 8 * swizzle_span(swizzle));
}

// A tile of rows of m or n, each one swizzle span wide, one row for each k. A tile of more elements than a span holds
// goes on `next_span_bytes` further. The next k step is `+ 16 * span`.
__device__ __forceinline__ MatrixDescriptor mn_major(const void* s_tile, int next_span_bytes,
                                                     Swizzle swizzle = SWIZZLE_128B) {
    return MatrixDescriptor(s_tile, swizzle, next_span_bytes, 8 * swizzle_span(swizzle));
}

}  // namespace ptx

#ifdef FLASHMOE_EMULATOR
#include "emulator/ptx/wgmma.h"
#else
namespace ptx {

// Tie registers to this point of the program: what computes them stays before it, what uses them after it.
template <int COUNT>
__device__ __forceinline__ void keep(float (&r)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(r[i]));
}
template <int COUNT>
__device__ __forceinline__ void keep(uint32_t (&r)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(r[i]));
}

// Before the first WGMMA, and again after the thread has touched `registers`: the accumulators and A fragments of the
// WGMMAs that follow. All 128 threads.
template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
    (keep(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Close the group of WGMMAs since the last commit. All 128 threads.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most PENDING of the newest groups are still under way. The `registers` of the finished ones belong to
// the thread again, and their tiles may be overwritten. All 128 threads.
template <int PENDING, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
    static_assert(0 <= PENDING && PENDING <= 7, "0 to 7 groups");
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (keep(registers), ...);
}

// One case of a chain over N: the instruction whose shape is m64n##n and `types`. `a` is operand A as the instruction
// writes it; a predicate says whether D is added to or overwritten; "1, 1" could negate A or B.
#define PTX_WGMMA(n, types, a, b, accumulate, majors, ...)                                                             \
    if constexpr (N == n)                                                                                              \
        asm volatile("{\n"                                                                                             \
                     ".reg .pred accumulate;\n"                                                                        \
                     "setp.ne.b32 accumulate, " #accumulate ", 0;\n"                                                   \
                     "wgmma.mma_async.sync.aligned.m64n" #n types " {" PTX_D##n "}, " a ", " #b                        \
                     ", accumulate, 1, 1" majors ";\n"                                                                 \
                     "}\n"                                                                                             \
                     : PTX_R##n                                                                                        \
                     : __VA_ARGS__);

// A and B from shared memory. 16-bit elements may be contiguous in either dimension; the instruction is told which.
#define PTX_SS(types, n, i0, i1, i2, i3, i4, ...)                                                                      \
    PTX_WGMMA(n, types, #i0, i1, i2, ", " #i3 ", " #i4, "l"(a.bits), "l"(b.bits), "r"(int(accumulate)),                \
              "n"(int(A_MAJOR)), "n"(int(B_MAJOR)))
#define PTX_SS_BF16(...) PTX_SS("k16.f32.bf16.bf16", __VA_ARGS__)
#define PTX_SS_F16(...) PTX_SS("k16.f32.f16.f16", __VA_ARGS__)
#define PTX_SS_E4M3(n, i0, i1, i2, ...)                                                                                \
    PTX_WGMMA(n, "k32.f32.e4m3.e4m3", #i0, i1, i2, "", "l"(a.bits), "l"(b.bits), "r"(int(accumulate)))

// A from four registers a thread, B from shared memory.
#define PTX_RS(types, majors, n, i0, i1, i2, i3, i4, i5, ...)                                                          \
    PTX_WGMMA(n, types, "{" #i0 ", " #i1 ", " #i2 ", " #i3 "}", i4, i5, majors, "r"(a[0]), "r"(a[1]), "r"(a[2]),       \
              "r"(a[3]), "l"(b.bits), "r"(int(accumulate)), "n"(int(B_MAJOR)))
#define PTX_RS_BF16(n, i0, i1, i2, i3, i4, i5, i6, i7) PTX_RS("k16.f32.bf16.bf16", ", " #i6, n, i0, i1, i2, i3, i4, i5)
#define PTX_RS_F16(n, i0, i1, i2, i3, i4, i5, i6, i7) PTX_RS("k16.f32.f16.f16", ", " #i6, n, i0, i1, i2, i3, i4, i5)
#define PTX_RS_E4M3(n, ...) PTX_RS("k32.f32.e4m3.e4m3", "", n, __VA_ARGS__)

// Start D += A B, or D = A B, with A and B in shared memory. All 128 threads, with the same descriptors.
// Lane l of warp w of the warpgroup holds D[16w + l/4][8i + 2(l%4)] in d[4i], its right neighbour in d[4i + 1], and the
// same columns eight rows further down in d[4i + 2] and d[4i + 3].
template <int N, class Element, Major A_MAJOR = K_MAJOR, Major B_MAJOR = K_MAJOR>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], MatrixDescriptor a, MatrixDescriptor b,
                                         bool accumulate = true) {
    check_wgmma<N, Element, A_MAJOR, B_MAJOR>();
    if constexpr (same_type<Element, __nv_bfloat16>) { PTX_EACH_N(PTX_SS_BF16) }
    if constexpr (same_type<Element, __half>) { PTX_EACH_N(PTX_SS_F16) }
    if constexpr (same_type<Element, __nv_fp8_e4m3>) { PTX_EACH_N(PTX_SS_E4M3) }
}

// The same with A in registers, laid out as mma.sync's A: warp w holds rows 16w to 16w + 15.
template <int N, class Element, Major B_MAJOR = K_MAJOR>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], MatrixDescriptor b,
                                         bool accumulate = true) {
    check_wgmma<N, Element, K_MAJOR, B_MAJOR>();
    if constexpr (same_type<Element, __nv_bfloat16>) { PTX_EACH_N(PTX_RS_BF16) }
    if constexpr (same_type<Element, __half>) { PTX_EACH_N(PTX_RS_F16) }
    if constexpr (same_type<Element, __nv_fp8_e4m3>) { PTX_EACH_N(PTX_RS_E4M3) }
}

}  // namespace ptx
#endif  // FLASHMOE_EMULATOR
