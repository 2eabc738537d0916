// The warps that bring activations into the ring.  Into gate_up they gather rows of x by token and quantize them on the
// way, as soon as the tokens' scales are known; into down they copy rows that other blocks have requantized.
#pragma once
#include "../vector.cuh"
#include "load.cuh"

namespace w4afp8::moe::layer {

// The rows of a run that this warp brings: every kXWarps-th.  Found among all pairs, in order.
template <class C>
__device__ __forceinline__ void find_rows(const Layer& p, typename C::Smem& smem, const Signals& signals,
                                          const Segment& s, int x_warp) {
  const Plan& plan = smem.plan;
  const int lane = threadIdx.x % 32, pairs = p.routing.tokens * p.routing.top_k;
  int row = plan.expert_row[s.expert] - s.first_row;  // of the first match, counted from the run's first
  for (int base = 0; base < pairs && row < s.tokens; base += 32) {
    const int pair = base + lane;
    const bool match = pair < pairs && plan.id[pair] == s.expert;
    const uint32_t matches = __ballot_sync(~0u, match);
    const int mine = row + __popc(matches & ((1u << lane) - 1));
    if (match && mine >= 0 && mine < s.tokens && mine % kXWarps == x_warp) {
      smem.row[x_warp][mine / kXWarps].token = pair / p.routing.top_k;
    }
    row += __popc(matches);
  }
  __syncwarp();
  for (int i = lane; i * kXWarps + x_warp < s.tokens; i += 32) {
    auto& found = smem.row[x_warp][i];
    if (p.static_scale[kGateUp] != nullptr) {
      found.scale = *p.static_scale[kGateUp];
    } else {
      float scale;
      while ((scale = load_relaxed(&signals.token_scale[found.token])) == 0.0f) {
      }
      found.scale = scale;
    }
  }
  __syncwarp();
}

// One stage is 256 columns: a lane has eight of each row.
template <class C>
__device__ void gather_segment(const Layer& p, typename C::Smem& smem, Ring<C::kStages>& ring, const Segment& s,
                               int x_warp) {
  constexpr int kAtOnce = 4;  // rows whose loads are under way while the four before are quantized
  constexpr int kColumns = kStageGroups * kTileCols;
  static_assert(kColumns == 32 * 8, "a warp reads a row of a stage at once");
  const int lane = threadIdx.x % 32, rows = (s.tokens - x_warp + kXWarps - 1) / kXWarps;
  const int steps = (rows + kAtOnce - 1) / kAtOnce;
  const auto read = [&](Raw<false>(&raw)[kAtOnce], int stage, int step) {
    const size_t column = static_cast<size_t>(s.first_stage + stage) * kColumns + lane * 8;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = step * kAtOnce + i;
      if (row < rows) {
        raw[i] = load_raw<false>(p.x, static_cast<size_t>(smem.row[x_warp][row].token) * p.hidden + column);
      }
    }
  };
  Raw<false> now[kAtOnce] = {}, next[kAtOnce] = {};
  if (rows > 0) read(now, 0, 0);
#pragma unroll 1
  for (int stage = 0; stage < s.stages; ++stage, ring.advance()) {
    auto& to = smem.stage[ring.stage];
    ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const bool last = step + 1 == steps;
      if (!last || stage + 1 < s.stages) read(next, last ? stage + 1 : stage, last ? 0 : step + 1);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int own = step * kAtOnce + i, row = own * kXWarps + x_warp;
        if (own < rows) {
          const float scale = smem.row[x_warp][own].scale;
          const int piece = lane % 16 / 2 ^ row % 8;  // sixteen bytes, swizzled
          *reinterpret_cast<uint2*>(to.x[lane / 16] + row * kTileCols + piece * 16 + lane % 2 * 8) =
              to_e4m3(widen<false>(now[i], p.type), Divisor(scale));
          if (lane == 0) to.x_scale[row] = scale;
        }
        now[i] = next[i];
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads through that door
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(&smem.x_full[ring.stage]);
  }
}

// One warp's part of it; the first warp's elected lane copies, the other only arrives.
template <class C>
__device__ void copy_segment(const Layer& p, typename C::Smem& smem, Ring<C::kStages>& ring, const Segment& s,
                             int x_warp) {
  const int groups = p.weight[kDown].groups, eights = (s.tokens + 7) / 8;
  const uint8_t* x = p.q + (static_cast<size_t>(s.block8) * groups + s.first_stage * kStageGroups) * 1024;
#pragma unroll 1
  for (int i = 0; i < s.stages; ++i, ring.advance(), x += kStageGroups * 1024) {
    auto& stage = smem.stage[ring.stage];
    uint64_t* full = &smem.x_full[ring.stage];
    ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
    if (!ptx::elect_one()) continue;
    if (x_warp > 0) {
      ptx::barrier_arrive(full);
      continue;
    }
    ptx::barrier_expect(full, eights * (kStageGroups * 1024 + 32));
    ptx::copy_bytes(stage.x_scale, p.q_scale + s.block8 * 8, eights * 32, full, ptx::kEvictNormal);
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

template <class C>
__device__ void load_activations(const Layer& p, typename C::Smem& smem, const Signals& signals, int x_warp) {
  Ring<kSegments> segments;
  Ring<C::kStages> ring;
  Segment s;
  Phase phase = kGateUp;
  int run = -1;  // whose rows are known
  while (next_segment<true>(smem, segments, s)) {
    const bool fresh = s.run != run || s.phase != phase;
    run = s.run, phase = s.phase;
    if (s.phase == kGateUp) {
      if (fresh) find_rows<C>(p, smem, signals, s, x_warp);
      gather_segment<C>(p, smem, ring, s, x_warp);
    } else {
      if (fresh && x_warp == 0) {
        await(&signals.run_ready[s.run], 1);
        expect_from_stores();
      }
      copy_segment<C>(p, smem, ring, s, x_warp);
    }
  }
}

}  // namespace w4afp8::moe::layer
