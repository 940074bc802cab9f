// Included before every kernel: what nvcc gives a .cu file without an #include.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "abi.h"
#include "../shared_layout.h"

#define FLASHMOE_EMULATOR 1
#define __CUDA_ARCH__ FLASHMOE_ARCH                   // FLASHMOE_ARCH: 900 for sm_90a
#if FLASHMOE_ARCH == 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __managed__
#define __shared__ thread_local                       // an OS thread runs one block at a time; implies static in a function
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __grid_constant__

// `extern __shared__ __align__(1024) unsigned char smem_raw[];` of a kernel repeats this declaration.
EMU_EXTERN_STORAGE unsigned char smem_raw[];

#define threadIdx (emu::thread()->thread_idx)
#define blockIdx (emu::thread()->block_idx)
#define blockDim (emu::thread()->block_dim)
#define gridDim (emu::thread()->grid_dim)
static constexpr int warpSize = 32;

#define EMU_DEVICE static __forceinline__

#include "device_sync.h"
#include "device_math.h"

// The C++ library's headers stay out: they would overload what device_math.h overloads.
namespace emu {
template <class T> struct NoReference { typedef T type; };
template <class T> struct NoReference<T&> { typedef T type; };

template <size_t...> struct Indices {};
#ifdef __clang__
template <class, size_t... I> using IndicesFrom = Indices<I...>;
template <size_t N> using IndicesUpTo = __make_integer_seq<IndicesFrom, size_t, N>;
#else
template <size_t N> using IndicesUpTo = Indices<__integer_pack(N)...>;
#endif

template <class... A, size_t... I>
__attribute__((no_sanitize("thread", "alignment"))) static void call(void (*kernel)(A...), void** values, Indices<I...>) {
    kernel(*static_cast<typename NoReference<A>::type*>(values[I])...);
}
template <class... A> __attribute__((no_sanitize("thread", "alignment"))) static void call(void (*kernel)(A...), void** values) {
    call(kernel, values, IndicesUpTo<sizeof...(A)>{});
}

// The mangled name of an instance spells the kernel's parameter types, as it does on the GPU.
template <class Kernel> __attribute__((noinline)) void signature() {}
}  // namespace emu

// What the runtime finds in the library of one kernel instance.
#define EMU_ENTRY(...)                                                                                                        \
    extern "C" EMU_API __attribute__((no_sanitize("thread", "alignment"))) void emu_entry(void** values) {                    \
        emu::call(&__VA_ARGS__, values);    /* the compiler may move the loads of the arguments here */                       \
    }                                                                                                                         \
    extern "C" EMU_API void* emu_signature() { return (void*)&emu::signature<decltype(&__VA_ARGS__)>; }
