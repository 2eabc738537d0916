// Device code's numbers, as far as it must compile: of a pair rounded to e4m3 the bytes are its whole numbers, so that
// who reads them knows the values.  Nothing else rounds here.
#pragma once
#include <bit>

#include "device.h"

#define __shared__ static
inline Index blockDim;
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct __nv_bfloat162 {
  uint32_t bits;
};
struct __half2 {
  uint32_t bits;
};
enum { __NV_SATFINITE, __NV_E4M3 };
__nv_bfloat162 __floats2bfloat162_rn(float, float);
__half2 __floats2half2_rn(float, float);
float2 __bfloat1622float2(__nv_bfloat162);
float2 __half22float2(__half2);
float __shfl_xor_sync(unsigned, float, int);
uint32_t __reduce_max_sync(unsigned, uint32_t);
bool __all_sync(unsigned, bool);
inline uint16_t __nv_cvt_float2_to_fp8x2(float2 v, int, int) {
  return static_cast<uint16_t>(static_cast<uint8_t>(v.x) | static_cast<uint8_t>(v.y) << 8);
}
inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline float __fdiv_rn(float a, float b) { return a / b; }
