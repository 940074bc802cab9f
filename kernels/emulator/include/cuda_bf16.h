// bfloat16: a float without its lower 16 bits.
#pragma once
#include "float16.h"

EMU_FLOAT16_TYPE(__nv_bfloat16, __nv_bfloat162, to_bf16, from_bf16)
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
EMU_FLOAT16_FUNCTIONS(__nv_bfloat16, __nv_bfloat162)

EMU_DEVICE __nv_bfloat16 __float2bfloat16(float x) { return x; }
EMU_DEVICE __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
EMU_DEVICE __nv_bfloat16 __float2bfloat16_rz(float x) {
    return __nv_bfloat16::of_bits(x != x ? 0x7fff : (unsigned short)(__float_as_uint(x) >> 16));
}
EMU_DEVICE __nv_bfloat16 __double2bfloat16(double x) { return x; }
EMU_DEVICE __nv_bfloat16 __int2bfloat16_rn(int x) { return x; }
EMU_DEVICE float __bfloat162float(__nv_bfloat16 x) { return x; }
EMU_DEVICE int __bfloat162int_rn(__nv_bfloat16 x) { return __float2int_rn(x); }
EMU_DEVICE unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
EMU_DEVICE short __bfloat16_as_short(__nv_bfloat16 x) { return short(x.bits); }
EMU_DEVICE __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16::of_bits(bits); }
EMU_DEVICE __nv_bfloat16 __short_as_bfloat16(short bits) { return __nv_bfloat16::of_bits((unsigned short)bits); }

EMU_DEVICE __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
EMU_DEVICE __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
EMU_DEVICE __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
EMU_DEVICE __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
EMU_DEVICE __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
EMU_DEVICE __nv_bfloat162 __float22bfloat162_rn(float2 a) { return {a.x, a.y}; }
EMU_DEVICE float2 __bfloat1622float2(__nv_bfloat162 a) { return {float(a.x), float(a.y)}; }
EMU_DEVICE __nv_bfloat16 __low2bfloat16(__nv_bfloat162 a) { return a.x; }
EMU_DEVICE __nv_bfloat16 __high2bfloat16(__nv_bfloat162 a) { return a.y; }
EMU_DEVICE __nv_bfloat162 __low2bfloat162(__nv_bfloat162 a) { return {a.x, a.x}; }
EMU_DEVICE __nv_bfloat162 __high2bfloat162(__nv_bfloat162 a) { return {a.y, a.y}; }
EMU_DEVICE __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x, b.x}; }
EMU_DEVICE __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.y, b.y}; }
