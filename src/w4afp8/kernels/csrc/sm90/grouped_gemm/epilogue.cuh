// From accumulators [64 rows x N tokens] of a warpgroup to out[token, row].
//
// Accumulator 4j+i of a thread is row 16*warp + lane/4 + 8*(i/2), token 8j + 2*(lane%4) + i%2.  Sixteen-bit results are
// transposed through shared memory so that a token's 64 rows leave as one 128-byte line.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../../ptx/mbarrier.cuh"
#include "params.h"

namespace w4afp8::grouped_gemm {

constexpr float kCodeUnit = 512.0f;  // codes are multiplied as code * 2^-9

__device__ __forceinline__ uint32_t pack_pair(float a, float b, OutType type) {
  if (type == OutType::kBFloat16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
  const __half2 v = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// The scales of this thread's two tokens in block j of eight, times the code unit.
__device__ __forceinline__ float2 token_scales(const Params& p, bool apply, int first_row, int tokens, int j) {
  if (!apply) return {kCodeUnit, kCodeUnit};
  const int t = 8 * j + 2 * (threadIdx.x % 4);
  const float* scale = p.x_scale + static_cast<size_t>(first_row + t) * p.x_scale_stride;
  return {t < tokens ? kCodeUnit * __ldg(scale) : 0.0f,
          t + 1 < tokens ? kCodeUnit * __ldg(scale + p.x_scale_stride) : 0.0f};
}

template <int kTokens>
__device__ __forceinline__ void store_float(const Params& p, const float (&acc)[kTokens / 2], int first_row, int tokens,
                                            int row, bool apply_scale) {
  float* out = static_cast<float*>(p.out);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const float2 scale = token_scales(p, apply_scale, first_row, tokens, j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = 8 * j + 2 * (threadIdx.x % 4) + i % 2;
      if (t < tokens) {
        out[static_cast<size_t>(first_row + t) * p.rows + row + 8 * (i / 2)] = acc[4 * j + i] * (i % 2 ? scale.y : scale.x);
      }
    }
  }
}

// `staging` is this warpgroup's [kTokens][64] of 16-bit results; `barrier` its named barrier.
template <int kTokens>
__device__ __forceinline__ void store_half(const Params& p, const float (&acc)[kTokens / 2], int first_row, int tokens,
                                           int row_block, bool apply_scale, uint8_t* staging, int barrier) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  ptx::named_barrier(barrier, 128);  // the previous tile has left the staging area
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const float2 scale = token_scales(p, apply_scale, first_row, tokens, j);
    const uint32_t upper = pack_pair(acc[4 * j] * scale.x, acc[4 * j + 1] * scale.y, p.out_type);
    const uint32_t lower = pack_pair(acc[4 * j + 2] * scale.x, acc[4 * j + 3] * scale.y, p.out_type);
    const int token = 8 * j + lane % 8;
    const int chunk = (2 * warp + lane / 8 % 2) ^ (token % 8);  // sixteen bytes; the xor spreads banks
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(
                     ptx::shared_address(staging + token * 128 + chunk * 16)),
                 "r"(upper), "r"(lower)
                 : "memory");
  }
  ptx::named_barrier(barrier, 128);
  uint16_t* out = static_cast<uint16_t*>(p.out);
#pragma unroll
  for (int base = 0; base < kTokens; base += 16) {
    const int token = base + thread / 8, chunk = thread % 8;
    if (token < tokens) {
      const int4 line = *reinterpret_cast<const int4*>(staging + token * 128 + (chunk ^ (token % 8)) * 16);
      *reinterpret_cast<int4*>(out + static_cast<size_t>(first_row + token) * p.rows + row_block * 64 + chunk * 8) = line;
    }
  }
}

}  // namespace w4afp8::grouped_gemm
