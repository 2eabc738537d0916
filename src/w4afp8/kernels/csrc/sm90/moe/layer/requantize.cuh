// Between the GEMMs, when few pairs make few gate_up tiles: the block that completes a tile requantizes it, by a warp that
// does not multiply.  Nobody counts and nobody fences; every such warp asks for the largest values of whole rows.
#pragma once
#include "plan.cuh"
#include "quantize.cuh"

namespace w4afp8::moe::layer {

// The tile's 128 columns of a run's rows.
__device__ __forceinline__ void requantize_tile(const Layer& p, const Segment& s, FewValues& values, FewRow* few) {
  constexpr int kAtOnce = 4;  // rows
  const int lane = threadIdx.x % 32;
  const bool asks = lane < p.inner / 64;  // four maxima of sixteen columns a lane
  const float* fixed = p.static_scale[kDown];
  const auto own = [&](int row) {
    asm volatile("" : "+r"(row));  // else the addresses of all rows are kept over both loops
    return reinterpret_cast<uint4*>(&values[row][s.row_tile * 128 + lane * 4]);
  };
#pragma unroll 1
  for (int first = 0; first < s.tokens; first += kAtOnce) {
    const int row = s.first_row + first, here = min(kAtOnce, s.tokens - first);
    uint4 most[kAtOnce], x[kAtOnce];
    bool there;
    do {
      there = true;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t* largest = &few[row + i].largest[lane * 4];
        most[i] = i < here && asks ? look_at_four(reinterpret_cast<const uint4*>(largest)) : uint4{};
        x[i] = i < here ? look_at_four(own(row + i)) : uint4{};
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) there &= all_there(most[i]) && all_there(x[i]);
    } while (!__all_sync(~0u, there));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i >= here) break;
      const float left = fmaxf(__uint_as_float(most[i].x), __uint_as_float(most[i].y));
      const float right = fmaxf(__uint_as_float(most[i].z), __uint_as_float(most[i].w));
      const float all = warp_max_from_zero(fmaxf(left, right));
      const float scale = fixed != nullptr ? *fixed : __fdiv_rn(fmaxf(all, kSmallestAmax), kLargest);
      const Reciprocal inverse(scale);
      const float2 low = {inverse(__uint_as_float(x[i].x)), inverse(__uint_as_float(x[i].y))};
      const float2 high = {inverse(__uint_as_float(x[i].z)), inverse(__uint_as_float(x[i].w))};
      leave_word(&few[row + i].activated[s.row_tile * 32 + lane],
                 __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3) |
                     uint32_t{__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3)} << 16);
      if (s.row_tile == 0 && lane == 0) leave_word(&few[row + i].scale[kDown], never_absent(scale));
      *own(row + i) = {kAbsent, kAbsent, kAbsent, kAbsent};
    }
  }
}

// All tiles that this block completes, in its order.  A warp.
template <class C>
__device__ void requantize_tiles(const Layer& p, const typename C::Plan& plan, FewValues& values, FewRow* few) {
  Walk<C> walk(p, plan);
  Segment s{};
  while (walk.next(s) && s.phase == kGateUp) {
    if (s.owner) requantize_tile(p, s, values, few);
  }
}

}  // namespace w4afp8::moe::layer
