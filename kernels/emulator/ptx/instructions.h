// What the wrappers of kernels/common/ptx/ ask of the runtime: one function per instruction, or per family of them.
// Bodies: the .cpp files beside this one, compiled once and never instrumented.
#pragma once
#ifndef EMU_API
#define EMU_API __attribute__((visibility("default")))
#endif
#include <stdint.h>

struct CUtensorMap_st;

namespace emu::ptx {

// basic, memory (memory.cpp)
EMU_API uint32_t smem_u32(const void* s_pointer);
EMU_API bool elect_one();
EMU_API void fence_proxy_async();
EMU_API void griddep_wait();
EMU_API void griddep_launch_dependents();
EMU_API int ld_acquire(const int* g_flag);
EMU_API void st_release(int* g_flag, int value);
EMU_API void red_release(int* g_counter, int value);

// barrier (../barrier.cpp)
EMU_API bool bar_red_or(int id, int threads, bool predicate);

// cluster (cluster.cpp)
EMU_API uint32_t cluster_rank();
EMU_API uint32_t cluster_size();
EMU_API void cluster_arrive();
EMU_API void cluster_wait();
EMU_API void* cluster_map(const void* s_pointer, uint32_t rank);

// mbarrier (mbarrier.cpp)
EMU_API void mbar_init(uint64_t* s_barrier, int arrivals);
EMU_API void mbar_fence_init();
EMU_API void mbar_inval(uint64_t* s_barrier);
EMU_API void mbar_arrive(uint64_t* s_barrier, int arrivals);
EMU_API void mbar_expect_tx(uint64_t* s_barrier, int bytes);
EMU_API void mbar_arrive_expect_tx(uint64_t* s_barrier, int bytes);
EMU_API void mbar_arrive_cluster(uint64_t* s_barrier, uint32_t rank);
EMU_API bool mbar_try_wait(uint64_t* s_barrier, int parity);
EMU_API void mbar_wait(uint64_t* s_barrier, int parity);

// cp_async (cp_async.cpp)
EMU_API void cp_async(void* s_destination, const void* g_source, int bytes, bool valid);
EMU_API void cp_async_commit();
EMU_API void cp_async_wait(int pending);
EMU_API void cp_async_mbar_arrive(uint64_t* s_barrier);

// tma, bulk (tma.cpp, bulk.cpp). `blocks`: bit r for block r of the cluster; 0 for the calling block.
EMU_API void tma_load(void* s_tile, const CUtensorMap_st* map, uint64_t* s_barrier, const int* at, int rank,
                      uint16_t blocks);
EMU_API void tma_store(const CUtensorMap_st* map, const int* at, int rank, const void* s_tile, bool add);
EMU_API void tma_prefetch(const CUtensorMap_st* map, int rank);
EMU_API void bulk_load(void* s_destination, const void* g_source, int bytes, uint64_t* s_barrier);
EMU_API void bulk_store(void* g_destination, const void* s_source, int bytes);
enum class AddType : uint8_t { f32, bf16, f16 };
EMU_API void bulk_reduce_add(void* g_destination, const void* s_source, int bytes, AddType type);
EMU_API void bulk_prefetch(const void* g_source, int bytes);
EMU_API void tma_commit();
EMU_API void tma_wait(int pending, bool only_read);

// ldmatrix, mma (matrix.cpp)
EMU_API void ldmatrix(uint32_t* r, const void* s_row, int count, bool transposed);
EMU_API void stmatrix(void* s_row, const uint32_t* r, int count, bool transposed);
enum class Format : uint8_t { bf16, f16, e4m3 };
EMU_API void mma(float* d, const uint32_t* a, const uint32_t* b, int k, Format format);

// wgmma (wgmma.cpp). `r` is null where A comes from shared memory.
struct Wgmma {
    float* d;
    const uint32_t* r;
    uint64_t a, b;              // matrix descriptors
    int n;
    Format format;
    bool a_mn_major, b_mn_major, accumulate;
};
EMU_API void wgmma_hand_over(const void* registers, uint32_t bytes);     // named in the fence that follows
EMU_API void wgmma_fence();
EMU_API void wgmma(const Wgmma& operands);
EMU_API void wgmma_commit();
EMU_API void wgmma_wait(int pending);
EMU_API void wgmma_check_free(const void* registers);

// register (register.cpp)
EMU_API void set_max_registers(int count, bool grow);

}  // namespace emu::ptx
