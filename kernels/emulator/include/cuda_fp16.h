// IEEE binary16.
#pragma once
#include "float16.h"

EMU_FLOAT16_TYPE(__half, __half2, to_f16, from_f16)
typedef __half half;
typedef __half2 half2;
EMU_FLOAT16_FUNCTIONS(__half, __half2)

EMU_DEVICE __half __float2half(float x) { return x; }
EMU_DEVICE __half __float2half_rn(float x) { return x; }
EMU_DEVICE __half __double2half(double x) { return x; }
EMU_DEVICE __half __int2half_rn(int x) { return x; }
EMU_DEVICE float __half2float(__half x) { return x; }
EMU_DEVICE int __half2int_rn(__half x) { return __float2int_rn(x); }
EMU_DEVICE unsigned short __half_as_ushort(__half x) { return x.bits; }
EMU_DEVICE short __half_as_short(__half x) { return short(x.bits); }
EMU_DEVICE __half __ushort_as_half(unsigned short bits) { return __half::of_bits(bits); }
EMU_DEVICE __half __short_as_half(short bits) { return __half::of_bits((unsigned short)bits); }

EMU_DEVICE __half2 __half2half2(__half x) { return {x, x}; }
EMU_DEVICE __half2 __halves2half2(__half x, __half y) { return {x, y}; }
EMU_DEVICE __half2 make_half2(__half x, __half y) { return {x, y}; }
EMU_DEVICE __half2 __float2half2_rn(float x) { return {x, x}; }
EMU_DEVICE __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
EMU_DEVICE __half2 __float22half2_rn(float2 a) { return {a.x, a.y}; }
EMU_DEVICE float2 __half22float2(__half2 a) { return {float(a.x), float(a.y)}; }
EMU_DEVICE __half __low2half(__half2 a) { return a.x; }
EMU_DEVICE __half __high2half(__half2 a) { return a.y; }
EMU_DEVICE __half2 __low2half2(__half2 a) { return {a.x, a.x}; }
EMU_DEVICE __half2 __high2half2(__half2 a) { return {a.y, a.y}; }
EMU_DEVICE __half2 __lows2half2(__half2 a, __half2 b) { return {a.x, b.x}; }
EMU_DEVICE __half2 __highs2half2(__half2 a, __half2 b) { return {a.y, b.y}; }
