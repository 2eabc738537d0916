// From accumulators [64 rows x N tokens] of a warpgroup to out[token, row].
//
// Accumulator 4j+i of a thread is row 16*warp + lane/4 + 8*(i/2), token 8j + 2*(lane%4) + i%2.  Sixteen-bit results are
// transposed through shared memory.
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

// Sixteen-bit results of a warp's sixteen rows, eight tokens at a time; place(j) is where this lane's column of those
// goes.
template <int kTokens, class Place>
__device__ __forceinline__ void stage_rows(const float (&acc)[kTokens / 2], const float2 (&scale)[kTokens / 8],
                                           OutType type, Place&& place) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const float* four = acc + 4 * j;
    const uint32_t upper = pack_pair(four[0] * scale[j].x, four[1] * scale[j].y, type);
    const uint32_t lower = pack_pair(four[2] * scale[j].x, four[3] * scale[j].y, type);
    ptx::store_transposed(place(j), upper, lower);
  }
}

// Large tiles: `staging` is this warpgroup's [kTokens][64], in the copy engine's 128-byte swizzle; `barrier` its named
// barrier.  Whole eights of tokens leave by the copy engine, which nobody waits for; what is left of a run that is no
// multiple of eight, by ordinary stores.
template <int kTokens>
__device__ __forceinline__ void store_by_copy(const Arguments& args, const float (&acc)[kTokens / 2],
                                              const float2 (&scale)[kTokens / 8], int first_row, int tokens,
                                              int row_block, uint8_t* staging, int barrier, int thread) {
  const Params& p = args.p;
  const int warp = thread / 32, lane = thread % 32;
  ptx::stores_have_read();
  ptx::named_barrier(barrier, 128);  // the previous tile has left the staging area
  const int own_chunk = (2 * warp + lane / 8 % 2) ^ (lane % 8);  // sixteen bytes; the xor spreads banks
  const uint32_t own = ptx::shared_address(staging + lane % 8 * 128 + own_chunk * 16);
  const auto place = [&](int j) { return own + j * (8 * 128); };
  if (p.out_type == OutType::kBFloat16) {  // asked once: asked in every pair, both conversions would be issued
    stage_rows<kTokens>(acc, scale, OutType::kBFloat16, place);
  } else {
    stage_rows<kTokens>(acc, scale, OutType::kFloat16, place);
  }
  ptx::stores_will_read();
  ptx::named_barrier(barrier, 128);
  const int eights = tokens / 8;
  if (ptx::elect_one()) {
    constexpr int kWide = kStoreTokens / 8;
    int i = eights * warp / 4;
    const int end = eights * (warp + 1) / 4;
    const auto store = [&](const CUtensorMap* map) {
      ptx::store_box(map, staging + i * (8 * 128), row_block * kTileRows, first_row + 8 * i);
    };
    for (; i + kWide <= end; i += kWide) store(&args.out_wide_map);
    for (; i < end; ++i) store(&args.out_map);
    ptx::commit_stores();
  }
  const int token = 8 * eights + thread / 8, chunk = thread % 8;
  if (token < tokens) {
    uint16_t* out = static_cast<uint16_t*>(p.out) + static_cast<size_t>(first_row + token) * p.rows;
    const int4 line = *reinterpret_cast<const int4*>(staging + token * 128 + (chunk ^ (token % 8)) * 16);
    *reinterpret_cast<int4*>(out + row_block * kTileRows + chunk * 8) = line;
  }
}

// Small tiles: each warp stores its sixteen rows by itself, 32 bytes a token, and waits for no other.  `staging` is this
// warp's [kTokens][16], in the same place whatever the tile's token count: other warps may be a tile behind.
template <int kTokens>
__device__ __forceinline__ void store_by_warps(const Params& p, const float (&acc)[kTokens / 2],
                                               const float2 (&scale)[kTokens / 8], int first_row, int tokens,
                                               int row_block, uint8_t* staging, int thread) {
  const int warp = thread / 32, lane = thread % 32;
  __syncwarp();  // the previous tile has left
  const int half = (lane / 8 + lane % 8 / 4) % 2;  // spreads banks
  const uint32_t own = ptx::shared_address(staging + lane % 8 * 32 + half * 16);
  stage_rows<kTokens>(acc, scale, p.out_type, [&](int j) { return own + j * (8 * 32); });
  __syncwarp();
  uint16_t* out = static_cast<uint16_t*>(p.out) + row_block * kTileRows + warp * 16 + lane % 2 * 8;
#pragma unroll
  for (int base = 0; base < kTokens; base += 16) {
    const int token = base + lane / 2, half = (lane + token / 4) % 2;
    if (token < tokens) {
      *reinterpret_cast<int4*>(out + static_cast<size_t>(first_row + token) * p.rows) =
          *reinterpret_cast<const int4*>(staging + token * 32 + half * 16);
    }
  }
}

}  // namespace w4afp8::grouped_gemm
