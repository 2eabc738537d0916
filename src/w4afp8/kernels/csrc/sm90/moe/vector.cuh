// Eight values at a time: 16-bit tensors in, e4m3 out, sums over a block.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "launch.h"

namespace w4afp8::moe {

constexpr float kLargest = 448.0f;
constexpr float kSmallestAmax = 1e-10f;  // as the reference: a row of zeros must not get the scale zero

// Two values in 16 bits each, the first in the lower half.
__device__ __forceinline__ uint32_t round_pair(float a, float b, InType type) {
  if (type == InType::kBFloat16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
  const __half2 v = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}

struct Eight {
  float v[8];
};

// Eight values as they lie in memory.  Loading and widening are apart so that several loads can be under way before the
// first is looked at; a branch on the type between them would make every load wait for the one before.
template <bool kFloat>
struct Raw {
  uint4 words[kFloat ? 2 : 1];
};

template <bool kFloat>
__device__ __forceinline__ Raw<kFloat> load_raw(const void* x, size_t at) {
  Raw<kFloat> raw;
  const uint4* p = reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(x) + at * (kFloat ? 4 : 2));
  raw.words[0] = p[0];
  if constexpr (kFloat) raw.words[1] = p[1];
  return raw;
}

template <bool kFloat>
__device__ __forceinline__ Eight widen(const Raw<kFloat>& raw, InType type) {
  Eight out;
  if constexpr (kFloat) {
    const float4 a = *reinterpret_cast<const float4*>(&raw.words[0]);
    const float4 b = *reinterpret_cast<const float4*>(&raw.words[1]);
    out = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
  } else {
    const uint32_t words[4] = {raw.words[0].x, raw.words[0].y, raw.words[0].z, raw.words[0].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 pair;
      if (type == InType::kBFloat16) {
        pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&words[i]));
      } else {
        pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      }
      out.v[2 * i] = pair.x, out.v[2 * i + 1] = pair.y;
    }
  }
  return out;
}

__device__ __forceinline__ float largest(const Eight& x) {
  float m = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) m = fmaxf(m, fabsf(x.v[i]));
  return m;
}

// x / scale rounded as division rounds it, not x * (1 / scale): the bytes must equal the reference's.  Two corrections
// of the quotient by its exact remainder give that wherever nothing overflows, as here: |x / scale| is at most some
// hundreds, or clamped.  The general division is ten times the code, and a branch.
struct Divisor {
  float scale, inverse;
  __device__ __forceinline__ explicit Divisor(float s) : scale(s), inverse(1.0f / s) {}
  __device__ __forceinline__ float operator()(float x) const {
    float quotient = x * inverse;
    quotient = fmaf(fmaf(-quotient, scale, x), inverse, quotient);
    return fmaf(fmaf(-quotient, scale, x), inverse, quotient);
  }
};

// x times the rounded 1 / scale, for values that no reference has bit for bit.
struct Reciprocal {
  float inverse;
  __device__ __forceinline__ explicit Reciprocal(float scale) : inverse(1.0f / scale) {}
  __device__ __forceinline__ float operator()(float x) const { return x * inverse; }
};

template <class Divide>
__device__ __forceinline__ uint2 to_e4m3(const Eight& x, const Divide& divide) {
  uint32_t words[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 pair = {divide(x.v[4 * half + 2 * i]), divide(x.v[4 * half + 2 * i + 1])};
      word |= uint32_t{__nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3)} << (16 * i);
    }
    words[half] = word;
  }
  return {words[0], words[1]};
}

__device__ __forceinline__ uint4 to_half8(const Eight& x, InType type) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = round_pair(x.v[2 * i], x.v[2 * i + 1], type);
  return {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ float warp_max(float m) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
  return m;
}

// The same of floats that are no NaN and not below +0, in one instruction: their bits are ordered as they are.
__device__ __forceinline__ float warp_max_from_zero(float m) {
  return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(m)));
}

// The largest over the block; every thread gets it.  One call a kernel.
__device__ __forceinline__ float block_max(float m) {
  __shared__ float each[32];
  m = warp_max(m);
  if (threadIdx.x % 32 == 0) each[threadIdx.x / 32] = m;
  __syncthreads();
  m = threadIdx.x % 32 < blockDim.x / 32 ? each[threadIdx.x % 32] : 0.0f;
  return warp_max(m);
}

}  // namespace w4afp8::moe
