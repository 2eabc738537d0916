// A consumer's steps through the scale groups of a tile: multiply one, unpack the next beside it, fetch the one after.
#pragma once
#include "../../ptx/mbarrier.cuh"
#include "../../ptx/wgmma.cuh"
#include "arguments.cuh"
#include "config.h"
#include "dequantize.cuh"

namespace w4afp8::grouped_gemm {

// A thread's share of one scale group as it lies in memory.
struct Packed {
  int4 first, second;
  uint32_t scale[2] = {0, 0};  // two bfloat16 in the first word, or two floats
};

// The same, ready for wgmma: A fragments of four multiplies, and the scales of the thread's two rows.
struct Weights {
  uint32_t a[16];
  float scale_upper, scale_lower;
};

// What a consumer thread knows for the whole kernel.  Addresses are in shared memory.
struct Place {
  int consumer, thread;
  uint32_t codes, scale;  // this thread's pieces in stage 0, group 0
};

template <class C>
__device__ __forceinline__ Place find_place(const typename C::Smem& smem, bool scale_float) {
  Place at;
  at.consumer = __shfl_sync(~0u, threadIdx.x / 128, 0);
  at.thread = threadIdx.x % 128;
  at.codes = ptx::shared_address(smem.codes[0][at.consumer]) + at.thread * 16;
  at.scale = ptx::shared_address(smem.scale[0].bytes) +
             (at.consumer * C::kStageGroups * (kTileRows / 2) + at.thread / 4) *
                 (C::kScales == Scales::kAny && scale_float ? 8 : 4);
  // Opaque to the compiler, which would otherwise compute all this again in every step.
  asm volatile("" : "+r"(at.thread), "+r"(at.codes), "+r"(at.scale));
  return at;
}

template <class C, int kGroup>
__device__ __forceinline__ void load_packed(Packed& w, const Place& at, int stage, bool scale_float) {
  const uint32_t codes = at.codes + stage * (C::kConsumers * C::kStageGroups * kTileBytes) + kGroup * kTileBytes;
  w.first = ptx::load_shared_16(codes);
  w.second = ptx::load_shared_16(codes + kTileBytes / 2);
  const uint32_t scale = at.scale + stage * sizeof(typename C::Smem::StageScale);
  if (C::kScales == Scales::kAny && scale_float) {
    ptx::load_shared_8(scale + kGroup * (kTileRows * 4), w.scale[0], w.scale[1]);
  } else {
    w.scale[0] = ptx::load_shared_4(scale + kGroup * (kTileRows * 2));
  }
}

template <class C>
__device__ __forceinline__ void unpack_all(Weights& w, const Packed& from, const Arguments& args) {
  unpack(from.first.x, args.minus_one, w.a[0], w.a[1]);
  unpack(from.first.y, args.minus_one, w.a[2], w.a[3]);
  unpack(from.first.z, args.minus_one, w.a[4], w.a[5]);
  unpack(from.first.w, args.minus_one, w.a[6], w.a[7]);
  unpack(from.second.x, args.minus_one, w.a[8], w.a[9]);
  unpack(from.second.y, args.minus_one, w.a[10], w.a[11]);
  unpack(from.second.z, args.minus_one, w.a[12], w.a[13]);
  unpack(from.second.w, args.minus_one, w.a[14], w.a[15]);
  if constexpr (C::kScales == Scales::kBFloat16) {  // a bfloat16 is the upper half of a float
    w.scale_upper = __uint_as_float(from.scale[0] << 16);
    w.scale_lower = __uint_as_float(from.scale[0] & 0xFFFF0000u);
  } else {
    w.scale_upper = __uint_as_float(__byte_perm(from.scale[0], from.scale[1], args.upper_bytes));
    w.scale_lower = __uint_as_float(__byte_perm(from.scale[0], from.scale[1], args.lower_bytes));
  }
}

template <class C, int kTokens>
__device__ __forceinline__ void promote(float (&acc)[kTokens / 2], const float (&product)[kTokens / 2],
                                        float scale_upper, float scale_lower, const Params& p, const Segment& s,
                                        int group) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    float left = 1.0f, right = 1.0f;
    if constexpr (C::kGroupScale) {
      const int t = 8 * j + 2 * (threadIdx.x % 4);  // this instance is not written for speed
      const int groups = p.cols / kTileCols;
      const float* scale = p.x_scale + static_cast<size_t>(s.first_row + t) * groups + s.first_group + group;
      left = t < s.tokens ? *scale : 0.0f;
      right = t + 1 < s.tokens ? scale[groups] : 0.0f;
    }
    if constexpr (C::kGroupScale) {
      acc[4 * j + 0] += scale_upper * left * product[4 * j + 0];
      acc[4 * j + 1] += scale_upper * right * product[4 * j + 1];
      acc[4 * j + 2] += scale_lower * left * product[4 * j + 2];
      acc[4 * j + 3] += scale_lower * right * product[4 * j + 3];
    } else {
      acc[4 * j + 0] += scale_upper * product[4 * j + 0];
      acc[4 * j + 1] += scale_upper * product[4 * j + 1];
      acc[4 * j + 2] += scale_lower * product[4 * j + 2];
      acc[4 * j + 3] += scale_lower * product[4 * j + 3];
    }
  }
}

// What a consumer carries from step to step, and from tile to tile: the group that multiplies next, unpacked; the one
// after it, as it lies in memory; the stage in use and the stage to fetch from.
template <class C>
struct Pipeline {
  Weights even, odd;
  Packed packed;
  Ring<C::kStages> use, fetch;
};

template <class C>
__device__ __forceinline__ void fill(Pipeline<C>& pipe, typename C::Smem& smem, const Place& at,
                                     const Arguments& args) {
  constexpr int kLast = C::kStageGroups - 1;  // 0 or 1
  Ring<C::kStages> from = pipe.use;
  ptx::barrier_wait(&smem.full[from.stage], from.phase);
  load_packed<C, 0>(pipe.packed, at, from.stage, args.p.weight_scale_float);
  unpack_all<C>(pipe.even, pipe.packed, args);
  if constexpr (kLast == 0) {
    from.advance();
    ptx::barrier_wait(&smem.full[from.stage], from.phase);
  }
  load_packed<C, kLast>(pipe.packed, at, from.stage, args.p.weight_scale_float);
}

// True, but the compiler does not know it, nor that it is always the same.  Work that must stay where it is written, in
// the shadow of a multiply, stands in a branch on this: out of a straight line ptxas sinks it below the wait.
__device__ __forceinline__ bool always(const Params& p) {
  int cols;
  asm volatile("mov.u32 %0, %1;" : "=r"(cols) : "r"(p.cols));
  return cols != 0;
}

// One scale group, the kGroup-th of its stage.  Starts its four multiplies; beside them unpacks the next group and
// fetches the one after; then promotes.  The group after a tile's last is the next tile's first, unless kEnds says that
// nothing follows this stage.
template <class C, int kTokens, int kGroup, bool kEnds>
__device__ __forceinline__ void step(float (&acc)[kTokens / 2], const Weights& now, Weights& next, Pipeline<C>& pipe,
                                     typename C::Smem& smem, const Place& at, const Arguments& args, const Segment& s,
                                     int group) {
  constexpr bool kStageEnds = kGroup == C::kStageGroups - 1;
  const Params& p = args.p;
  float product[kTokens / 2];
  uint64_t* full = &smem.full[pipe.fetch.stage];
  uint32_t answer = 1;
  if constexpr (kGroup == 0 && !kEnds) answer = ptx::barrier_ask(full, pipe.fetch.phase);
  const uint32_t x = ptx::swizzled_rows(ptx::shared_address(smem.x[pipe.use.stage]) + kGroup * (kTokens * kTileCols));
  ptx::wgmma_fence();
  ptx::Wgmma<kTokens>::template multiply<false>(product, now.a, x);
#pragma unroll
  for (int k = 1; k < 4; ++k) ptx::Wgmma<kTokens>::template multiply<true>(product, now.a + 4 * k, x + 2 * k);
  ptx::wgmma_commit();
  if (always(p)) {
    if constexpr (!kEnds || kGroup == 0) {
      unpack_all<C>(next, pipe.packed, args);
#pragma unroll
      for (int i = 0; i < 16; ++i) ptx::pin(next.a[i]);
    }
    if constexpr (!kEnds) {
      if constexpr (kGroup == 0) ptx::barrier_insist(answer, full, pipe.fetch.phase);
      load_packed<C, kGroup>(pipe.packed, at, pipe.fetch.stage, p.weight_scale_float);
    }
    if constexpr (kStageEnds) pipe.fetch.advance();
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) ptx::pin(product[i]);
  if constexpr (kStageEnds) {
    if (ptx::arrives(at.thread)) ptx::barrier_arrive(&smem.empty[pipe.use.stage]);
    pipe.use.advance();
  }
  promote<C, kTokens>(acc, product, now.scale_upper, now.scale_lower, p, s, group);
}

// With two sets of products: unpacks the group that multiplies next, the kGroup-th of its stage, and fetches the one
// after it.
template <class C, int kGroup>
__device__ __forceinline__ void make_ready(Weights& next, Pipeline<C>& pipe, typename C::Smem& smem, const Place& at,
                                           const Arguments& args) {
  uint64_t* full = &smem.full[pipe.fetch.stage];
  uint32_t answer = 1;
  if constexpr (kGroup == 1) answer = ptx::barrier_ask(full, pipe.fetch.phase);
  unpack_all<C>(next, pipe.packed, args);
#pragma unroll
  for (int i = 0; i < 16; ++i) ptx::pin(next.a[i]);
  if constexpr (kGroup == 1) ptx::barrier_insist(answer, full, pipe.fetch.phase);
  load_packed<C, 1 - kGroup>(pipe.packed, at, pipe.fetch.stage, args.p.weight_scale_float);
  if constexpr (kGroup == 0) pipe.fetch.advance();
}

template <class C, int kTokens, int kGroup>
__device__ __forceinline__ void multiply(float (&product)[kTokens / 2], const Weights& now, typename C::Smem& smem,
                                         int stage) {
  const uint32_t x = ptx::swizzled_rows(ptx::shared_address(smem.x[stage]) + kGroup * (kTokens * kTileCols));
  ptx::wgmma_fence();
  ptx::Wgmma<kTokens>::template multiply<false>(product, now.a, x);
#pragma unroll
  for (int k = 1; k < 4; ++k) ptx::Wgmma<kTokens>::template multiply<true>(product, now.a + 4 * k, x + 2 * k);
  ptx::wgmma_commit();
}

// All groups of a segment; one set of products is promoted while the other is made.
template <class C, int kTokens>
__device__ __forceinline__ void accumulate_overlapped(float (&acc)[kTokens / 2], Pipeline<C>& pipe,
                                                      typename C::Smem& smem, const Place& at, const Arguments& args,
                                                      const Segment& s) {
  float even[kTokens / 2], odd[kTokens / 2];
  const auto finish = [&](float(&product)[kTokens / 2], const Weights& of, int group) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) ptx::pin(product[i]);
    promote<C, kTokens>(acc, product, of.scale_upper, of.scale_lower, args.p, s, group);
  };
  const auto leave_stage = [&] {
    if (ptx::arrives(at.thread)) ptx::barrier_arrive(&smem.empty[pipe.use.stage]);
    pipe.use.advance();
  };
  int group = 0;
  const auto begin = [&] {  // both groups of a stage; the first is promoted, the second is under way
    make_ready<C, 1>(pipe.odd, pipe, smem, at, args);
    multiply<C, kTokens, 1>(odd, pipe.odd, smem, pipe.use.stage);
    ptx::wgmma_wait<1>();
    finish(even, pipe.even, group);
    make_ready<C, 0>(pipe.even, pipe, smem, at, args);
  };
  const auto end = [&] {
    leave_stage();
    finish(odd, pipe.odd, group + 1);
    group += 2;
  };
  // Nothing is under way from one round of the loop to the next: ptxas would wait for each multiply.
  for (; group + 2 < s.groups;) {
    multiply<C, kTokens, 0>(even, pipe.even, smem, pipe.use.stage);
    begin();
    Ring<C::kStages> after = pipe.use;
    after.advance();
    multiply<C, kTokens, 0>(even, pipe.even, smem, after.stage);
    ptx::wgmma_wait<1>();
    end();
    begin();
    ptx::wgmma_wait<0>();
    end();
  }
  if (group < s.groups) {
    multiply<C, kTokens, 0>(even, pipe.even, smem, pipe.use.stage);
    begin();
    ptx::wgmma_wait<0>();
    end();
  }
}

// All groups of a segment.
template <class C, int kTokens>
__device__ __forceinline__ void accumulate(float (&acc)[kTokens / 2], Pipeline<C>& pipe, typename C::Smem& smem,
                                           const Place& at, const Arguments& args, const Segment& s) {
  const bool ahead = C::kStageGroups == 1 || args.looks_ahead;  // of single groups no step knows that it is the last
  if (!ahead) fill<C>(pipe, smem, at, args);
  const int last = ahead ? s.groups : s.groups - 2;
  int group = 0;
  for (; group < last; group += 2) {
    step<C, kTokens, 0, false>(acc, pipe.even, pipe.odd, pipe, smem, at, args, s, group);
    if (C::kStageGroups == 1 && group + 1 == last) {
      pipe.even = pipe.odd;
      break;
    }
    step<C, kTokens, C::kStageGroups - 1, false>(acc, pipe.odd, pipe.even, pipe, smem, at, args, s, group + 1);
  }
  if (!ahead) {
    step<C, kTokens, 0, true>(acc, pipe.even, pipe.odd, pipe, smem, at, args, s, group);
    step<C, kTokens, 1, true>(acc, pipe.odd, pipe.even, pipe, smem, at, args, s, group + 1);
  }
}

}  // namespace w4afp8::grouped_gemm
