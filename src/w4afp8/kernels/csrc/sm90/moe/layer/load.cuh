// The two loading threads, and the one that plans for them.  Weights depend on nothing but the plan, so their thread
// runs ahead as far as the ring is deep, over the end of a phase too; activations wait until other blocks have written
// them.
#pragma once
#include "../../../ptx/copy.cuh"
#include "../../queue.cuh"
#include "plan.cuh"
#include "signal.cuh"

namespace w4afp8::moe::layer {

// Hands planned segments to the loading threads and the consumer warps, in order.
template <class C>
__device__ void plan_segments(const Layer& p, typename C::Smem& smem, typename C::Signals& signals) {
  Walk<C> walk(p, smem.plan, &signals.tiles_taken);
  Ring<kSegments> ring;
  for (bool more = true; more;) {
    Segment s{};
    more = walk.next(s);
    hand_out(smem, ring, s);
  }
}
// Threads that load, and warps: those that multiply, of few pairs one that loads.
template <class C>
constexpr int kSegmentReaders = (C::kFew ? 1 : 2) + (kConsumerThreads / 32 + (C::kFew ? 1 : 0)) * ptx::kArrivals;

// The next segment, for a whole warp or for one thread; false at the end.
template <bool kWarp, class Smem>
__device__ __forceinline__ bool next_segment(Smem& smem, Ring<kSegments>& ring, Segment& s) {
  take<kWarp>(smem, ring, s, [](const Segment& s) {
    return uint32_t(s.phase | s.stages | s.row_tile | s.weight_stage | s.run | s.first_row | s.block8 | s.tokens |
                    s.first_stage | s.peers | s.owner | s.shared);
  });
  return s.stages > 0;
}

// What the loading thread needs of a weight, looked up once a phase.
struct WeightPlace {
  const uint8_t *codes, *scale;
  uint32_t scale_bytes;      // of one row block's stage
  uint32_t beside, across;   // from one row block of a tile to the next and to the third, in stages
  __device__ WeightPlace(const Layer& p, Phase phase)
      : codes(p.weight[phase].codes), scale(static_cast<const uint8_t*>(p.weight[phase].scale)),
        scale_bytes(kTileRows * kStageGroups * (p.weight[phase].scale_float ? 4 : 2)), beside(p.stages[phase]),
        across(phase == kGateUp ? p.inner / kTileRows * beside : 2 * beside) {}
};

// The stages of this block after the ring's last, as far as they are planned: `rest` of the segment at hand, then those
// of the segments behind it in the queue.
template <class C>
__device__ void prefetch_weights(typename C::Smem& smem, Ring<kSegments> next, const WeightPlace& w, Segment s,
                                 int rest) {
  constexpr uint32_t kCodes = kStageGroups * kTileBytes;
  const Phase phase = s.phase;
  uint32_t stage = s.weight_stage + s.stages - rest;
  int looked = 1;
#pragma unroll 1
  for (int left = kAhead; left > 0;) {
#pragma unroll 1
    for (; rest > 0 && left > 0; --rest, --left, ++stage) {
#pragma unroll 1
      for (int c = 0; c < kConsumers; ++c) {
        const size_t at = stage + c % 2 * w.beside + c / 2 * w.across;
        ptx::prefetch_bytes(w.codes + at * kCodes, kCodes);
        ptx::prefetch_bytes(w.scale + at * w.scale_bytes, w.scale_bytes);
      }
    }
    if (looked++ == kSegments || !ptx::barrier_ask(&smem.segment_full[next.stage], next.phase)) return;
    s = smem.segment[next.stage];  // it stays: this thread has not said that it has read it
    if (s.stages == 0 || s.phase != phase) return;
    stage = s.weight_stage, rest = s.stages;
    next.advance();
  }
}

template <class C>
__device__ void load_weights(const Layer& p, typename C::Smem& smem) {
  constexpr uint32_t kCodes = kStageGroups * kTileBytes;
  Ring<kSegments> segments;
  Ring<C::kStages> ring, landed;
  int asked = 0, asked_before = 0, in_flight = 0;  // stages: in all, before this phase, not landed
  Phase phase = kGateUp;
  WeightPlace w(p, kGateUp);
  const bool few_tiles = C::kFew && tiles_are_few(p, smem.plan.runs);  // then nobody fences
  Segment s;
  while (next_segment<false>(smem, segments, s)) {
    if (s.phase != phase) phase = s.phase, asked_before = asked, w = WeightPlace(p, s.phase);
    const uint64_t policy = s.shared ? ptx::kEvictNormal : ptx::kEvictFirst;
    const bool together = w.beside == 1 && w.across == 2;  // the four row blocks of a tile lie one behind the other
    const uint8_t* codes = w.codes + static_cast<size_t>(s.weight_stage) * kCodes;
    const uint8_t* scale = w.scale + static_cast<size_t>(s.weight_stage) * w.scale_bytes;
#pragma unroll 1
    for (int i = 0; i < s.stages; ++i, ring.advance(), codes += kCodes, scale += w.scale_bytes) {
      auto& stage = smem.stage[ring.stage];
      uint64_t* full = &smem.weights_full[ring.stage];
      const int before = asked - asked_before;
      if (!few_tiles && before == C::kStages && !ptx::barrier_ask(&smem.empty[ring.stage], ring.phase ^ 1)) {
        prefetch_weights<C>(smem, segments, w, s, s.stages - i);  // memory would rest until other blocks' rows come
      }
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      // More weights under way would only queue up, and a fence waits for all of them.  While a phase's first ring is
      // filled, other blocks are waiting for this one's fences and there is nothing to multiply: fewer still.
      const bool fences = !few_tiles && (!C::kFew || phase == kDown);
      const int most = fences && before < C::kStages ? 1 : kInFlight;
#pragma unroll 1
      for (; in_flight >= most; --in_flight, landed.advance()) {
        ptx::barrier_wait(&smem.weights_full[landed.stage], landed.phase);
      }
      ++in_flight, ++asked;
      ptx::barrier_expect(full, kConsumers * (kCodes + w.scale_bytes));
      if (together) {
        ptx::copy_bytes(stage.codes, codes, kConsumers * kCodes, full, policy);
        ptx::copy_bytes(stage.scale, scale, kConsumers * w.scale_bytes, full, policy);
        continue;
      }
#pragma unroll
      for (int c = 0; c < kConsumers; ++c) {
        const uint32_t stages = c % 2 * w.beside + c / 2 * w.across;
        ptx::copy_bytes(stage.codes[c], codes + stages * kCodes, kCodes, full, policy);
        ptx::copy_bytes(stage.scale + c * w.scale_bytes, scale + stages * w.scale_bytes, w.scale_bytes, full, policy);
      }
    }
  }
}

template <class C>
__device__ void load_activations(const Layer& p, typename C::Smem& smem, const typename C::Signals& signals) {
  Ring<kSegments> segments;
  Ring<C::kStages> ring;
  Segment s;
  int seen = -2;  // run whose rows are known to be there; -1: every run's of the first phase
  bool all = false;  // are every run's of the second?
  while (next_segment<false>(smem, segments, s)) {
    const int wanted = s.phase == kGateUp ? -1 : s.run;
    if (seen != wanted && !all) {
      if (s.phase == kGateUp) {
        await(&signals.tokens_ready, p.routing.tokens * token_parts(p));
      } else {
        const uint32_t groups = p.weight[kDown].groups;
        all = acquire(&signals.groups_ready) == smem.plan.runs * groups;
        if (!all) await(&signals.run_ready[s.run], groups);
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

// The same for few pairs, by a whole warp: asks for the words of rows until they are there.  As many stages at once as
// are free and as a lane's registers hold, so that the first ones do not come one latency after the other.
template <class C>
__device__ void ask_for_activations(typename C::Smem& smem, const FewRow* rows) {
  constexpr int kRowPieces = kStageGroups * kTileCols / 16;  // pieces of sixteen bytes of a row in a stage
  constexpr int kHeld = C::kTokens * kRowPieces / 32;        // of all rows, a lane
  const int lane = threadIdx.x % 32;
  Ring<kSegments> segments;
  Ring<C::kStages> ring;
  Segment s;
  while (next_segment<true>(smem, segments, s)) {
    const FewRow& first_row = rows[s.first_row];
    const uint32_t* first = s.phase == kGateUp ? first_row.x : first_row.activated;
    const int inverse = (63 + s.tokens) / s.tokens;  // each / tokens = each * inverse >> 6, for both up to eight
    int stage_of[kHeld], from[kHeld], to[kHeld];  // this lane's pieces: words from `first`, bytes in a stage's x
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int each = (i * 32 + lane) / kRowPieces, piece = lane % kRowPieces;
      stage_of[i] = each * inverse >> 6;
      const int row = each - stage_of[i] * s.tokens;
      from[i] = row * kFewPitch + (s.first_stage + stage_of[i]) * (kRowPieces * 4) + piece * 4;
      to[i] = piece / 8 * 1024 + row * kTileCols + (piece % 8 ^ row) * 16;
    }
    const uint32_t* own_scale = &first_row.scale[s.phase] + lane * kFewPitch;
    uint32_t scale = lane < s.tokens ? kAbsent : 0;
    const int most = C::kTokens * inverse >> 6;
#pragma unroll 1
    for (int done = 0, here; done < s.stages; done += here, first += here * (kRowPieces * 4)) {
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      Ring<C::kStages> next = ring;
      next.advance();
      for (here = 1; here < min(most, s.stages - done); ++here, next.advance()) {
        const uint32_t free = ptx::barrier_ask(&smem.empty[next.stage], next.phase ^ 1);
        if (!__all_sync(~0u, free != 0)) break;
      }
      uint4 v[kHeld];
      bool there;
      do {
        if (scale == kAbsent) scale = look_at(own_scale);
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          v[i] = stage_of[i] < here ? look_at_four(reinterpret_cast<const uint4*>(first + from[i])) : uint4{};
        }
        there = scale != kAbsent;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) there &= all_there(v[i]);
      } while (!__all_sync(~0u, there));
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (stage_of[i] >= here) continue;
        const int slot = ring.stage + stage_of[i];
        auto& stage = smem.stage[slot < C::kStages ? slot : slot - C::kStages];
        *reinterpret_cast<uint4*>(stage.x[0] + to[i]) = v[i];
      }
      for (int i = 0, slot = ring.stage; i < here; ++i, slot = slot + 1 < C::kStages ? slot + 1 : 0) {
        if (lane < s.tokens) smem.stage[slot].x_scale[lane] = __uint_as_float(scale);
      }
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads what these threads have stored
      __syncwarp();
      for (int i = 0; i < here; ++i, ring.advance()) {
        if (lane < C::kTokens) ptx::barrier_arrive(&smem.x_full[ring.stage]);  // who has stored a scale says so itself
      }
    }
  }
}

}  // namespace w4afp8::moe::layer
