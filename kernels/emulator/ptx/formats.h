// The number formats of the tensor cores, as bits, to and from float. Rounding is to nearest even.
#pragma once
#include <stdint.h>
#include <string.h>

namespace emu {

inline uint32_t float_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
inline float bits_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

// Denormals to zero, as instructions marked .ftz do.
inline float flush(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }

// The integer nearest to x, for 0 <= x < 2^22.
inline uint32_t nearest(float x) { return float_bits(x + 0x1p23f) - 0x4B000000; }

// Rounds the bits of a positive float to `bits` fewer.
inline uint32_t drop_bits(uint32_t u, int bits) { return (u + (1u << (bits - 1)) - 1 + (u >> bits & 1)) >> bits; }

inline float from_bf16(uint16_t h) { return bits_float(uint32_t(h) << 16); }

inline uint16_t to_bf16(float x) { return uint16_t(x != x ? 0x7FFF : drop_bits(float_bits(x), 16)); }

// The exponent's bias differs by 112: multiplying rebuilds denormals too.
inline float from_f16(uint16_t h) {
    uint32_t magnitude = (h & 0x7FFFu) << 13;
    uint32_t special = (h & 0x7C00u) == 0x7C00u ? 0x7F800000u | magnitude : float_bits(bits_float(magnitude) * 0x1p112f);
    return bits_float(special | (h & 0x8000u) << 16);
}

inline uint16_t to_f16(float x) {
    uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7FFF;
    if (magnitude >= 0x477FF000) return uint16_t(sign | 0x7C00);                       // from 65520 on, infinity
    if (magnitude < 0x38800000) return uint16_t(sign | nearest(bits_float(magnitude) * 0x1p24f));    // denormal
    return uint16_t(sign | (drop_bits(magnitude, 13) - (112 << 10)));
}

// e4m3: no infinity; 0x7F is NaN.
inline float from_e4m3(uint8_t e) {
    uint32_t magnitude = uint32_t(e & 0x7F) << 20;
    float x = (e & 0x7F) == 0x7F ? __builtin_nanf("") : bits_float(magnitude) * 0x1p120f;
    return e & 0x80 ? -x : x;
}

// Beyond the largest value, 448, this saturates.
inline uint8_t to_e4m3(float x) {
    uint32_t u = float_bits(x), sign = u >> 24 & 0x80, magnitude = u & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7F;
    if (magnitude > 0x43E00000) return uint8_t(sign | 0x7E);
    if (magnitude < 0x3C800000) return uint8_t(sign | nearest(bits_float(magnitude) * 0x1p9f));
    return uint8_t(sign | (drop_bits(magnitude, 20) - (120 << 3)));
}

}  // namespace emu
