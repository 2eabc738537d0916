// Between the GEMMs: activated rows to e4m3, by a warp of every block that does not multiply.  Of few pairs that make
// few gate_up tiles the block that completes a tile requantizes it: nobody counts and nobody fences, every such warp
// asks for the largest values of whole rows.  Else the groups of all runs are shared by all blocks, each as soon as its
// run is activated: were it for whoever completes a run, who is late would be it every time, and be later still.
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
      const float4 four = {__uint_as_float(x[i].x), __uint_as_float(x[i].y), __uint_as_float(x[i].z),
                           __uint_as_float(x[i].w)};
      leave_word(&few[row + i].activated[s.row_tile * 32 + lane], four_to_e4m3(four, inverse));
      if (s.row_tile == 0 && lane == 0) leave_word(&few[row + i].scale[kDown], never_absent(scale));
      *own(row + i) = {kAbsent, kAbsent, kAbsent, kAbsent};
    }
  }
}

// All tiles that this block completes, in its order.  A warp.
template <class C>
__device__ void requantize_tiles(const Layer& p, const typename C::Plan& plan, FewValues& values, FewRow* few) {
  Walk<C> walk(p, plan, nullptr);
  Segment s{};
  while (walk.next(s) && s.phase == kGateUp) {
    if (s.owner) requantize_tile(p, s, values, few);
  }
}

// A group of 128 columns of a run's rows, whose largest values are known.
template <class C>
__device__ __forceinline__ void requantize_group(const Layer& p, int first_row, int tokens, int block8, int group,
                                                 const uint32_t* largest, FewRow* few) {
  constexpr int kAtOnce = 4;  // rows
  const int lane = threadIdx.x % 32;
  const float* fixed = p.static_scale[kDown];
#pragma unroll 1
  for (int first = 0; first < tokens; first += kAtOnce) {
    float4 x[kAtOnce];
    float scale[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first_row + min(first + i, tokens - 1);
      const float* all = p.activated + static_cast<size_t>(row) * p.inner;
      x[i] = __ldcg(reinterpret_cast<const float4*>(all) + group * 32 + lane);
      scale[i] = fixed != nullptr ? *fixed : __uint_as_float(__ldcg(largest + row));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first + i;
      if (row >= tokens) break;
      const float real = fixed != nullptr ? scale[i] : __fdiv_rn(fmaxf(scale[i], kSmallestAmax), kLargest);
      const Reciprocal inverse(real);
      const uint32_t bytes = four_to_e4m3(x[i], inverse);
      const bool begins = lane == 0 && group == 0;
      if constexpr (C::kFew) {
        FewRow& to = few[first_row + row];
        leave_word(&to.activated[group * 32 + lane], bytes);
        if (begins) leave_word(&to.scale[kDown], never_absent(real));
      } else {
        const int place = block8 * 8 + row;
        const size_t at = q_offset(place, p.weight[kDown].groups, group * 128 + lane * 4);
        *reinterpret_cast<uint32_t*>(p.q[kDown] + at) = bytes;
        if (begins) p.q_scale[kDown][place] = real;
      }
    }
  }
}

// This block's groups, in the order in which runs are activated.  A warp.
template <class C>
__device__ void requantize_groups(const Layer& p, const typename C::Plan& plan, typename C::Signals& signals,
                                  FewRow* few) {
  const int groups = p.weight[kDown].groups;
  int slot = 0;
#pragma unroll 1
  for (int at = blockIdx.x; at < plan.runs * groups; at += gridDim.x) {
    const int run = at / groups;
    while (plan.run_end[slot] <= run) ++slot;
    const int before = (run - (slot == 0 ? 0 : plan.run_end[slot - 1])) * C::kTokens;  // rows of this expert
    await(&signals.activated[run], p.inner / kTileRows);
    requantize_group<C>(p, plan.first_row[slot] + before, min(C::kTokens, plan.rows[slot] - before),
                        plan.block8[slot] + before / 8, at - run * groups, signals.largest, few);
    if constexpr (!C::kFew) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        __threadfence();  // for both
        add(&signals.run_ready[run]);
        add(&signals.groups_ready);
      }
    }
  }
}

}  // namespace w4afp8::moe::layer
