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
    int rank = 0;
    for (int other = lane; other < pair; other += 32) rank += plan.id[other] == e;
    rank = __reduce_add_sync(~0u, rank);
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

// One warpgroup: requantizes the activated rows of a run, whose largest values are known.  A warp takes 128 values of a
// row at a time and has several such loads under way.
template <class C>
__device__ __forceinline__ void quantize_run(const Layer& p, const Segment& s, const uint32_t* largest, FewRow* few,
                                             int thread) {
  constexpr int kAtOnce = 4;
  const int lane = thread % 32, groups = p.weight[kDown].groups, pieces = s.tokens * groups;
  const float* fixed = p.static_scale[kDown];
  for (int first = thread / 32; first < pieces; first += 4 * kAtOnce) {
    float4 x[kAtOnce];
    float scale[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int piece = min(first + 4 * i, pieces - 1), row = s.first_row + piece / groups;
      x[i] = __ldcg(reinterpret_cast<const float4*>(p.activated + static_cast<size_t>(row) * p.inner) +
                    piece % groups * 32 + lane);
      scale[i] = fixed != nullptr ? *fixed : __uint_as_float(__ldcg(largest + row));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int piece = first + 4 * i, row = piece / groups, place = s.block8 * 8 + row;
      if (piece >= pieces) break;
      const float real = fixed != nullptr ? scale[i] : __fdiv_rn(fmaxf(scale[i], kSmallestAmax), kLargest);
      const Reciprocal inverse(real);
      const float2 low = {inverse(x[i].x), inverse(x[i].y)}, high = {inverse(x[i].z), inverse(x[i].w)};
      const uint32_t bytes = __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3) |
                             uint32_t{__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3)} << 16;
      const bool begins = lane == 0 && piece % groups == 0;
      if constexpr (C::kFew) {
        FewRow& to = few[s.first_row + row];
        leave_word(&to.activated[piece % groups * 32 + lane], bytes);
        if (begins) leave_word(&to.scale[kDown], never_absent(real));
      } else {
        *reinterpret_cast<uint32_t*>(p.q[kDown] + q_offset(place, groups, piece % groups * 128 + lane * 4)) = bytes;
        if (begins) p.q_scale[kDown][place] = real;
      }
    }
  }
}

}  // namespace w4afp8::moe::layer
