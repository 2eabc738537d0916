// The two loading threads, and the one that plans for them.  Weights depend on nothing but the plan, so their thread runs
// ahead as far as the ring is deep, over the end of a phase too; activations wait until other blocks have written them.
#pragma once
#include "../../../ptx/copy.cuh"
#include "../../ring.cuh"
#include "plan.cuh"
#include "signal.cuh"

namespace w4afp8::moe::layer {

// Hands planned segments to the loading threads and the consumer warps, in order.
template <class C>
__device__ void plan_segments(const Layer& p, typename C::Smem& smem) {
  Walk<C::kTokens> walk(p, smem.plan);
  Ring<kSegments> ring;
  for (bool more = true; more; ring.advance()) {
    Segment s{};
    more = walk.next(s);
    ptx::barrier_wait(&smem.segment_empty[ring.stage], ring.phase ^ 1);
    smem.segment[ring.stage] = s;
    ptx::barrier_arrive(&smem.segment_full[ring.stage]);
  }
}
constexpr int kSegmentReaders = 2 + kConsumerThreads / 32;

// The next segment, for a whole warp or for one thread; false at the end.
template <bool kWarp, class Smem>
__device__ __forceinline__ bool next_segment(Smem& smem, Ring<kSegments>& ring, Segment& s) {
  ptx::barrier_wait(&smem.segment_full[ring.stage], ring.phase);
  s = smem.segment[ring.stage];
  if constexpr (kWarp) __syncwarp();
  if (!kWarp || threadIdx.x % 32 == 0) ptx::barrier_arrive(&smem.segment_empty[ring.stage]);
  ring.advance();
  return s.stages > 0;
}

template <class C>
__device__ void load_weights(const Layer& p, typename C::Smem& smem) {
  Ring<kSegments> segments;
  Ring<C::kStages> ring, landed;
  int asked = 0, asked_before = 0, in_flight = 0;  // stages: in all, before this phase, not landed
  Phase phase = kGateUp;
  Segment s;
  while (next_segment<false>(smem, segments, s)) {
    if (s.phase != phase) phase = s.phase, asked_before = asked;
    const Weight& w = p.weight[s.phase];
    const uint32_t scale_bytes = kTileRows * kStageGroups * (w.scale_float ? 4 : 2);
    const uint64_t policy = s.shared ? ptx::kEvictNormal : ptx::kEvictFirst;
    const uint8_t* codes[kConsumers];
    const uint8_t* scale[kConsumers];
#pragma unroll
    for (int c = 0; c < kConsumers; ++c) {
      const size_t stage = (static_cast<size_t>(s.expert) * w.row_blocks + row_block(p, s, c)) *
                               (w.groups / kStageGroups) + s.first_stage;
      codes[c] = w.codes + stage * (kStageGroups * kTileBytes);
      scale[c] = static_cast<const uint8_t*>(w.scale) + stage * scale_bytes;
    }
#pragma unroll 1
    for (int i = 0; i < s.stages; ++i, ring.advance()) {
      auto& stage = smem.stage[ring.stage];
      uint64_t* full = &smem.weights_full[ring.stage];
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      // More weights under way would only queue up, and a fence waits for all of them.  While a phase's first ring is
      // filled, other blocks are waiting for this one's signals and there is nothing to multiply: fewer still.
      const int most = asked - asked_before < C::kStages ? 1 : kInFlight;
      for (; in_flight >= most; --in_flight, landed.advance()) {
        ptx::barrier_wait(&smem.weights_full[landed.stage], landed.phase);
      }
      ++in_flight, ++asked;
      ptx::barrier_expect(full, kConsumers * (kStageGroups * kTileBytes + scale_bytes));
#pragma unroll
      for (int c = 0; c < kConsumers; ++c) {
        ptx::copy_bytes(stage.codes[c], codes[c], kStageGroups * kTileBytes, full, policy);
        ptx::copy_bytes(stage.scale[c], scale[c], scale_bytes, full, policy);
        codes[c] += kStageGroups * kTileBytes;
        scale[c] += scale_bytes;
      }
    }
  }
}

template <class C>
__device__ void load_activations(const Layer& p, typename C::Smem& smem, const Signals& signals) {
  Ring<kSegments> segments;
  Ring<C::kStages> ring;
  Segment s;
  int seen = -2;  // run whose rows are known to be there; -1: every run's of the first phase
  while (next_segment<false>(smem, segments, s)) {
    const int wanted = s.phase == kGateUp ? -1 : s.run;
    if (seen != wanted) {
      if (s.phase == kGateUp) {
        await(&signals.tokens_ready, p.routing.tokens * token_parts(p));
      } else {
        await(&signals.run_ready[s.run], 1);
      }
      expect_from_stores();
      seen = wanted;
    }
    const int groups = p.weight[s.phase].groups, eights = (s.tokens + 7) / 8;
    const uint8_t* x = p.q[s.phase] + (static_cast<size_t>(s.block8) * groups + s.first_stage * kStageGroups) * 1024;
    const float* x_scale = p.q_scale[s.phase] + s.block8 * 8;
#pragma unroll 1
    for (int i = 0; i < s.stages; ++i, ring.advance(), x += kStageGroups * 1024) {
      auto& stage = smem.stage[ring.stage];
      uint64_t* full = &smem.x_full[ring.stage];
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      ptx::barrier_expect(full, eights * (kStageGroups * 1024 + 32));
      ptx::copy_bytes(stage.x_scale, x_scale, eights * 32, full, ptx::kEvictNormal);
      if constexpr (C::kTokens == 8) {  // the groups lie in shared memory as they do outside
        ptx::copy_bytes(stage.x, x, kStageGroups * 1024, full, ptx::kEvictNormal);
      } else {
        for (int b = 0; b < eights; ++b) {
          const uint8_t* from = x + static_cast<size_t>(b) * groups * 1024;
#pragma unroll
          for (int g = 0; g < kStageGroups; ++g) {
            ptx::copy_bytes(stage.x[g] + b * 1024, from + g * 1024, 1024, full, ptx::kEvictNormal);
          }
        }
      }
    }
  }
}

}  // namespace w4afp8::moe::layer
