#pragma once
#include "emulator/ptx/instructions.h"

namespace ptx {

__device__ __forceinline__ void bulk_load(void* s_destination, const void* g_source, int bytes, uint64_t* s_barrier) {
    emu::ptx::bulk_load(s_destination, g_source, bytes, s_barrier);
}
__device__ __forceinline__ void bulk_store(void* g_destination, const void* s_source, int bytes) {
    emu::ptx::bulk_store(g_destination, s_source, bytes);
}
__device__ __forceinline__ void bulk_reduce_add(float* g_destination, const float* s_source, int bytes) {
    emu::ptx::bulk_reduce_add(g_destination, s_source, bytes, emu::ptx::AddType::f32);
}
__device__ __forceinline__ void bulk_reduce_add(__nv_bfloat16* g_destination, const __nv_bfloat16* s_source,
                                                int bytes) {
    emu::ptx::bulk_reduce_add(g_destination, s_source, bytes, emu::ptx::AddType::bf16);
}
__device__ __forceinline__ void bulk_reduce_add(__half* g_destination, const __half* s_source, int bytes) {
    emu::ptx::bulk_reduce_add(g_destination, s_source, bytes, emu::ptx::AddType::f16);
}
__device__ __forceinline__ void bulk_prefetch(const void* g_source, int bytes) {
    emu::ptx::bulk_prefetch(g_source, bytes);
}

}  // namespace ptx
