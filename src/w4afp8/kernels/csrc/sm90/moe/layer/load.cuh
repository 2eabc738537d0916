// The thread that plans, and the one that loads weights.  Weights depend on nothing but the plan, so it runs ahead as far
// as the ring is deep, over the end of a phase too.
#pragma once
#include "../../../ptx/copy.cuh"
#include "plan.cuh"
#include "signal.cuh"

namespace w4afp8::moe::layer {

template <int kSlots>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kSlots) stage = 0, phase ^= 1;
  }
};

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
constexpr int kSegmentReaders = 1 + kXWarps + kConsumerThreads / 32;

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
  int asked = 0;
  Segment s;
  while (next_segment<false>(smem, segments, s)) {
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
      if (asked >= kInFlight) {  // more would only queue up, and every signal behind it
        ptx::barrier_wait(&smem.weights_full[landed.stage], landed.phase);
        landed.advance();
      }
      ++asked;
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

}  // namespace w4afp8::moe::layer
