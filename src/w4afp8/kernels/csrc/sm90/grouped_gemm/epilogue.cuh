// From accumulators [64 rows x N tokens] of a warpgroup to out[token, row].
//
// Accumulator 4j+i of a thread is row 16*warp + lane/4 + 8*(i/2), token 8j + 2*(lane%4) + i%2.  Sixteen-bit results are
// transposed through shared memory, in the copy engine's 128-byte swizzle.  Whole eights of tokens leave by the copy engine,
// which nobody waits for; what is left of a run that is no multiple of eight, by ordinary stores.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../../ptx/copy.cuh"
#include "../../ptx/mbarrier.cuh"
#include "arguments.cuh"
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

// `scale[j]` belongs to this thread's two tokens in block j of eight.
template <int kTokens>
__device__ __forceinline__ void store_float(const Params& p, const float (&acc)[kTokens / 2],
                                            const float2 (&scale)[kTokens / 8], int first_row, int tokens, int row) {
  float* out = static_cast<float*>(p.out);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = 8 * j + 2 * (threadIdx.x % 4) + i % 2;
      if (t < tokens) {
        out[static_cast<size_t>(first_row + t) * p.rows + row + 8 * (i / 2)] =
            acc[4 * j + i] * (i % 2 ? scale[j].y : scale[j].x);
      }
    }
  }
}

// `staging` is this warpgroup's [kTokens][64] of 16-bit results; `barrier` its named barrier.
template <int kTokens>
__device__ __forceinline__ void store_half(const Arguments& args, const float (&acc)[kTokens / 2],
                                           const float2 (&scale)[kTokens / 8], int first_row, int tokens,
                                           int row_block, uint8_t* staging, int barrier, int thread) {
  const Params& p = args.p;
  const int warp = thread / 32, lane = thread % 32;
  ptx::stores_have_read();
  ptx::named_barrier(barrier, 128);  // the previous tile has left the staging area
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const uint32_t upper = pack_pair(acc[4 * j] * scale[j].x, acc[4 * j + 1] * scale[j].y, p.out_type);
    const uint32_t lower = pack_pair(acc[4 * j + 2] * scale[j].x, acc[4 * j + 3] * scale[j].y, p.out_type);
    const int token = 8 * j + lane % 8;
    const int chunk = (2 * warp + lane / 8 % 2) ^ (token % 8);  // sixteen bytes; the xor spreads banks
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(
                     ptx::shared_address(staging + token * 128 + chunk * 16)),
                 "r"(upper), "r"(lower)
                 : "memory");
  }
  ptx::stores_will_read();
  ptx::named_barrier(barrier, 128);
  const int eights = tokens / 8;
  if (ptx::elect_one()) {
    for (int i = warp; i < eights; i += 4) {
      ptx::store_box(&args.out_map, staging + i * (8 * 128), row_block * kTileRows, first_row + 8 * i);
    }
    ptx::commit_stores();
  }
  const int token = 8 * eights + thread / 8, chunk = thread % 8;
  if (token < tokens) {
    uint16_t* out = static_cast<uint16_t*>(p.out) + static_cast<size_t>(first_row + token) * p.rows;
    const int4 line = *reinterpret_cast<const int4*>(staging + token * 128 + (chunk ^ (token % 8)) * 16);
    *reinterpret_cast<int4*>(out + row_block * kTileRows + chunk * 8) = line;
  }
}

}  // namespace w4afp8::grouped_gemm
