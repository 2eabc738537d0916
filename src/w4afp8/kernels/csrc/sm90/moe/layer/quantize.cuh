// Activations to e4m3, written where wgmma's operand is read from: by eights of rows, a group of 128 inputs contiguous.
#pragma once
#include "../../../ptx/mbarrier.cuh"
#include "../vector.cuh"
#include "plan.cuh"
#include "signal.cuh"

namespace w4afp8::moe::layer {

// Byte `col` of the row at `place` = 8 * block8 + row.  Sixteen-byte pieces of a row are swizzled by its number.
__device__ __forceinline__ size_t q_offset(int place, int groups, int col) {
  const size_t row = (static_cast<size_t>(place / 8) * groups + col / kTileCols) * 1024 + place % 8 * kTileCols;
  return row + ((col % kTileCols / 16 ^ place % 8) * 16 + col % 16);
}

constexpr int kHeld = 2;  // pieces of eight values a thread holds: tokens of up to 8192 values are read once
static_assert(kHeld * kConsumerThreads * 8 >= kFewHidden, "few pairs are read once");

struct Token {
  Raw<false> piece[kHeld];
};

// Starts the loads of a token's row; it is looked at later.
__device__ __forceinline__ void read_token(const Layer& p, int token, Token& held) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (i * kConsumerThreads + threadIdx.x) * 8;
    held.piece[i] = at < p.hidden ? load_raw<false>(p.x, static_cast<size_t>(token) * p.hidden + at) : Raw<false>{};
  }
}

// How many of the first `pairs` go to expert `e`.  A warp.
__device__ __forceinline__ int count_before(const uint16_t* ids, int pairs, int e) {
  int found = 0;
  for (int eight = threadIdx.x % 32; eight * 8 < pairs; eight += 32) {
    const uint4 all = reinterpret_cast<const uint4*>(ids)[eight];
    const uint32_t words[4] = {all.x, all.y, all.z, all.w};
    const int left = pairs - eight * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      found += 2 * i < left && static_cast<int>(words[i] & 0xffff) == e;
      found += 2 * i + 1 < left && static_cast<int>(words[i] >> 16) == e;
    }
  }
  return __reduce_add_sync(~0u, found);
}

// Four values that lie side by side.
__device__ __forceinline__ uint32_t four_to_e4m3(float4 x, const Reciprocal& inverse) {
  const float2 low = {inverse(x.x), inverse(x.y)}, high = {inverse(x.z), inverse(x.w)};
  return __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3) |
         uint32_t{__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3)} << 16;
}

// All consumers: finds the rows of the token's pairs and writes a part of its e4m3 row to each of them.
template <class C>
__device__ void quantize_token(const Layer& p, typename C::Smem& smem, FewRow* few, int token, int part,
                               const Token& held) {
  const Routing& r = p.routing;
  const typename C::Plan& plan = smem.plan;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) amax = fmaxf(amax, largest(widen<false>(held.piece[i], p.type)));
  const auto more = [&](auto&& use) {
    if constexpr (!C::kFew) {  // few pairs are held whole
      for (int at = (kHeld * kConsumerThreads + threadIdx.x) * 8; at < p.hidden; at += kConsumerThreads * 8) {
        use(at, widen<false>(load_raw<false>(p.x, static_cast<size_t>(token) * p.hidden + at), p.type));
      }
    }
  };
  more([&](int, const Eight& x) { amax = fmaxf(amax, largest(x)); });
  amax = warp_max_from_zero(amax);
  if (lane == 0) smem.warp_max[warp] = amax;
  for (int choice = warp; choice < r.top_k; choice += kConsumerThreads / 32) {
    const int pair = token * r.top_k + choice, e = plan.id[pair];
    const int rank = count_before(plan.id, pair, e);
    if (lane == 0) {
      const bool here = e < r.experts;
      smem.token_rows[choice] = !here ? -1 : rank + (C::kFew ? plan.expert_row[e] : plan.expert_block8[e] * 8);
      if constexpr (!C::kFew) r.rows[pair] = here ? plan.expert_row[e] + rank : -1;
    }
  }
  ptx::named_barrier(15, kConsumerThreads);
  const float all = warp_max_from_zero(lane < kConsumerThreads / 32 ? smem.warp_max[lane] : 0.0f);
  const float* fixed = p.static_scale[kGateUp];
  const float scale = fixed != nullptr ? *fixed : __fdiv_rn(fmaxf(all, kSmallestAmax), kLargest);
  const int groups = p.weight[kGateUp].groups;
  const int each = (p.hidden / 8 + token_parts(p) - 1) / token_parts(p) * 8;
  const Divisor divide(scale);
  const auto write = [&](int at, const Eight& x) {
    if (at < part * each || at >= (part + 1) * each) return;
    const uint2 bytes = to_e4m3(x, divide);
    for (int i = 0; i < r.top_k; ++i) {
      const int place = smem.token_rows[i];
      if (place < 0) continue;
      if constexpr (C::kFew) {
        leave_two(&few[place].x[at / 4], bytes);  // e4m3 made from a number or a NaN is never 0xff
      } else {
        *reinterpret_cast<uint2*>(p.q[kGateUp] + q_offset(place, groups, at)) = bytes;
      }
    }
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (i * kConsumerThreads + threadIdx.x) * 8;
    if (at < p.hidden) write(at, widen<false>(held.piece[i], p.type));
  }
  more(write);
  if (threadIdx.x < r.top_k && smem.token_rows[threadIdx.x] >= 0) {
    const int place = smem.token_rows[threadIdx.x];
    if constexpr (C::kFew) {
      leave_word(&few[place].scale[kGateUp], never_absent(scale));
    } else {
      p.q_scale[kGateUp][place] = scale;
    }
  }
  ptx::named_barrier(15, kConsumerThreads);
}

}  // namespace w4afp8::moe::layer
