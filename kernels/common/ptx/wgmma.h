// WGMMA: the 128 threads of a warpgroup multiply tiles in shared memory on the tensor cores, without waiting. sm_90a.
//
// D[64][N] += A[64][k] B[k][N], N = 8, 16, ... 256, k = 32 bytes of elements (16 bf16 or fp16, 32 e4m3), D in fp32.
// The order is wgmma_fence, any number of wgmma_ss and wgmma_rs, wgmma_commit, wgmma_wait. Between the first and the
// last the accumulators and A fragments belong to the tensor cores, and the tiles must not be written.
#pragma once
#include "common/ptx/basic.h"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(FLASHMOE_EMULATOR)
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
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
template <int COUNT>
__device__ __forceinline__ void keep(uint32_t (&r)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(r[i])::"memory");
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

// The accumulators of m64nN are operands %0 to %(N/2 - 1). Eight more columns are four more registers.
#define PTX_D8 "%0, %1, %2, %3"
#define PTX_D16 PTX_D8 ", %4, %5, %6, %7"
#define PTX_D24 PTX_D16 ", %8, %9, %10, %11"
#define PTX_D32 PTX_D24 ", %12, %13, %14, %15"
#define PTX_D40 PTX_D32 ", %16, %17, %18, %19"
#define PTX_D48 PTX_D40 ", %20, %21, %22, %23"
#define PTX_D56 PTX_D48 ", %24, %25, %26, %27"
#define PTX_D64 PTX_D56 ", %28, %29, %30, %31"
#define PTX_D72 PTX_D64 ", %32, %33, %34, %35"
#define PTX_D80 PTX_D72 ", %36, %37, %38, %39"
#define PTX_D88 PTX_D80 ", %40, %41, %42, %43"
#define PTX_D96 PTX_D88 ", %44, %45, %46, %47"
#define PTX_D104 PTX_D96 ", %48, %49, %50, %51"
#define PTX_D112 PTX_D104 ", %52, %53, %54, %55"
#define PTX_D120 PTX_D112 ", %56, %57, %58, %59"
#define PTX_D128 PTX_D120 ", %60, %61, %62, %63"
#define PTX_D136 PTX_D128 ", %64, %65, %66, %67"
#define PTX_D144 PTX_D136 ", %68, %69, %70, %71"
#define PTX_D152 PTX_D144 ", %72, %73, %74, %75"
#define PTX_D160 PTX_D152 ", %76, %77, %78, %79"
#define PTX_D168 PTX_D160 ", %80, %81, %82, %83"
#define PTX_D176 PTX_D168 ", %84, %85, %86, %87"
#define PTX_D184 PTX_D176 ", %88, %89, %90, %91"
#define PTX_D192 PTX_D184 ", %92, %93, %94, %95"
#define PTX_D200 PTX_D192 ", %96, %97, %98, %99"
#define PTX_D208 PTX_D200 ", %100, %101, %102, %103"
#define PTX_D216 PTX_D208 ", %104, %105, %106, %107"
#define PTX_D224 PTX_D216 ", %108, %109, %110, %111"
#define PTX_D232 PTX_D224 ", %112, %113, %114, %115"
#define PTX_D240 PTX_D232 ", %116, %117, %118, %119"
#define PTX_D248 PTX_D240 ", %120, %121, %122, %123"
#define PTX_D256 PTX_D248 ", %124, %125, %126, %127"

// The same registers, as operands.
#define PTX_R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_R8 PTX_R4(0)
#define PTX_R16 PTX_R8, PTX_R4(4)
#define PTX_R24 PTX_R16, PTX_R4(8)
#define PTX_R32 PTX_R24, PTX_R4(12)
#define PTX_R40 PTX_R32, PTX_R4(16)
#define PTX_R48 PTX_R40, PTX_R4(20)
#define PTX_R56 PTX_R48, PTX_R4(24)
#define PTX_R64 PTX_R56, PTX_R4(28)
#define PTX_R72 PTX_R64, PTX_R4(32)
#define PTX_R80 PTX_R72, PTX_R4(36)
#define PTX_R88 PTX_R80, PTX_R4(40)
#define PTX_R96 PTX_R88, PTX_R4(44)
#define PTX_R104 PTX_R96, PTX_R4(48)
#define PTX_R112 PTX_R104, PTX_R4(52)
#define PTX_R120 PTX_R112, PTX_R4(56)
#define PTX_R128 PTX_R120, PTX_R4(60)
#define PTX_R136 PTX_R128, PTX_R4(64)
#define PTX_R144 PTX_R136, PTX_R4(68)
#define PTX_R152 PTX_R144, PTX_R4(72)
#define PTX_R160 PTX_R152, PTX_R4(76)
#define PTX_R168 PTX_R160, PTX_R4(80)
#define PTX_R176 PTX_R168, PTX_R4(84)
#define PTX_R184 PTX_R176, PTX_R4(88)
#define PTX_R192 PTX_R184, PTX_R4(92)
#define PTX_R200 PTX_R192, PTX_R4(96)
#define PTX_R208 PTX_R200, PTX_R4(100)
#define PTX_R216 PTX_R208, PTX_R4(104)
#define PTX_R224 PTX_R216, PTX_R4(108)
#define PTX_R232 PTX_R224, PTX_R4(112)
#define PTX_R240 PTX_R232, PTX_R4(116)
#define PTX_R248 PTX_R240, PTX_R4(120)
#define PTX_R256 PTX_R248, PTX_R4(124)

// X(N, the numbers of the operands that follow the accumulators) for every N.
#define PTX_EACH_N(X) \
    X(8, %4, %5, %6, %7, %8, %9, %10, %11)                 \
    X(16, %8, %9, %10, %11, %12, %13, %14, %15)            \
    X(24, %12, %13, %14, %15, %16, %17, %18, %19)          \
    X(32, %16, %17, %18, %19, %20, %21, %22, %23)          \
    X(40, %20, %21, %22, %23, %24, %25, %26, %27)          \
    X(48, %24, %25, %26, %27, %28, %29, %30, %31)          \
    X(56, %28, %29, %30, %31, %32, %33, %34, %35)          \
    X(64, %32, %33, %34, %35, %36, %37, %38, %39)          \
    X(72, %36, %37, %38, %39, %40, %41, %42, %43)          \
    X(80, %40, %41, %42, %43, %44, %45, %46, %47)          \
    X(88, %44, %45, %46, %47, %48, %49, %50, %51)          \
    X(96, %48, %49, %50, %51, %52, %53, %54, %55)          \
    X(104, %52, %53, %54, %55, %56, %57, %58, %59)         \
    X(112, %56, %57, %58, %59, %60, %61, %62, %63)         \
    X(120, %60, %61, %62, %63, %64, %65, %66, %67)         \
    X(128, %64, %65, %66, %67, %68, %69, %70, %71)         \
    X(136, %68, %69, %70, %71, %72, %73, %74, %75)         \
    X(144, %72, %73, %74, %75, %76, %77, %78, %79)         \
    X(152, %76, %77, %78, %79, %80, %81, %82, %83)         \
    X(160, %80, %81, %82, %83, %84, %85, %86, %87)         \
    X(168, %84, %85, %86, %87, %88, %89, %90, %91)         \
    X(176, %88, %89, %90, %91, %92, %93, %94, %95)         \
    X(184, %92, %93, %94, %95, %96, %97, %98, %99)         \
    X(192, %96, %97, %98, %99, %100, %101, %102, %103)     \
    X(200, %100, %101, %102, %103, %104, %105, %106, %107) \
    X(208, %104, %105, %106, %107, %108, %109, %110, %111) \
    X(216, %108, %109, %110, %111, %112, %113, %114, %115) \
    X(224, %112, %113, %114, %115, %116, %117, %118, %119) \
    X(232, %116, %117, %118, %119, %120, %121, %122, %123) \
    X(240, %120, %121, %122, %123, %124, %125, %126, %127) \
    X(248, %124, %125, %126, %127, %128, %129, %130, %131) \
    X(256, %128, %129, %130, %131, %132, %133, %134, %135)

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
