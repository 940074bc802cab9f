// CUDA's vector types. A copy is one access of the whole vector, as it is one load or store on the GPU.
#pragma once
#include <stdint.h>

struct uint3 { unsigned x, y, z; };

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMU_WIDE_COPY(Name)                                                                     \
    Name() = default;                                                                           \
    Name(const Name& other) { *(Wide*)this = *(const Wide*)&other; }                            \
    Name& operator=(const Name& other) { *(Wide*)this = *(const Wide*)&other; return *this; }

#define EMU_VECTOR2(Name, T)                                                                    \
    struct alignas(2 * sizeof(T)) Name {                                                        \
        T x, y;                                                                                 \
        typedef T Wide __attribute__((vector_size(2 * sizeof(T)), may_alias));                  \
        EMU_WIDE_COPY(Name)                                                                     \
        Name(T x, T y) : x(x), y(y) {}                                                          \
    };                                                                                          \
    static inline Name make_##Name(T x, T y) { return Name(x, y); }

#define EMU_VECTOR3(Name, T)                                                                    \
    struct Name { T x, y, z; };                                                                 \
    static inline Name make_##Name(T x, T y, T z) { return Name{x, y, z}; }

#define EMU_VECTOR4(Name, T)                                                                    \
    struct alignas(4 * sizeof(T)) Name {                                                        \
        T x, y, z, w;                                                                           \
        typedef T Wide __attribute__((vector_size(4 * sizeof(T)), may_alias));                  \
        EMU_WIDE_COPY(Name)                                                                     \
        Name(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                                    \
    };                                                                                          \
    static inline Name make_##Name(T x, T y, T z, T w) { return Name(x, y, z, w); }

#define EMU_VECTORS(name, T) EMU_VECTOR2(name##2, T) EMU_VECTOR3(name##3, T) EMU_VECTOR4(name##4, T)

EMU_VECTORS(char, signed char)
EMU_VECTORS(uchar, unsigned char)
EMU_VECTORS(short, short)
EMU_VECTORS(ushort, unsigned short)
EMU_VECTORS(int, int)
EMU_VECTOR2(uint2, unsigned)
EMU_VECTOR4(uint4, unsigned)
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return uint3{x, y, z}; }
EMU_VECTORS(float, float)
EMU_VECTOR2(double2, double)
EMU_VECTOR2(longlong2, long long)
EMU_VECTOR2(ulonglong2, unsigned long long)
