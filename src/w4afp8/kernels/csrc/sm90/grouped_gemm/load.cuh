// The loading thread: how it begins, while the kernel before still runs, and how it keeps the ring of stages full.
#pragma once
#include "../../ptx/copy.cuh"
#include "../../ptx/dependents.cuh"
#include "arguments.cuh"
#include "segments.cuh"

namespace w4afp8::grouped_gemm {

// Bytes of weights in a stage.
template <class C>
__device__ __forceinline__ int weight_bytes(const Params& p) {
  return C::kStageGroups * C::kConsumers * (kTileBytes + kTileRows * (p.weight_scale_float ? 4 : 2));
}

// One thread: the weights of a stage, two copies.  Row blocks beyond the expert's last are filled with zeros.
template <class C>
__device__ __forceinline__ void copy_weights(const Arguments& args, typename C::Smem& smem, const Segment& s, int group,
                                             int stage) {
  const int first_block = s.row_tile * C::kConsumers;
  const uint64_t policy = s.shared ? ptx::kEvictNormal : ptx::kEvictFirst;
  uint64_t* full = &smem.full[stage];
  ptx::copy_box(smem.codes[stage], &args.codes_map, 0, group * 32, first_block, s.expert, full, policy);
  ptx::copy_box(smem.scale[stage].bytes, &args.scale_map, group * kTileRows, first_block, s.expert, full, policy);
}

template <class C>
__device__ __forceinline__ void copy_x(const Arguments& args, typename C::Smem& smem, const Segment& s, int group,
                                       int stage) {
  ptx::copy_box(smem.x[stage], &args.x_map[C::Tokens::index(s.tokens)], 0, s.first_row, group, &smem.full[stage],
                ptx::kEvictNormal);
}

// One thread, while the kernel before still runs: plans the first segments, and asks for their weights, for as many
// stages as there are.  Where that kernel may write them, a few come into L2 and no farther.
template <class C>
__device__ void begin_early(const Arguments& args, typename C::Smem& smem) {
  const bool ready = args.p.weights_ready;
  const int stages = ready ? C::kStages : kEarlyStages;
  int stage = 0;
  plan_early<C>(args.p, smem, 0, [&](const Segment& s) {
    for (int g = s.first_group; g < s.first_group + s.groups && stage < stages; g += C::kStageGroups, ++stage) {
      if (ready) {
        ptx::barrier_expect_early(&smem.full[stage], weight_bytes<C>(args.p));
        copy_weights<C>(args, smem, s, g, stage);
      } else {
        ptx::prefetch_box(&args.codes_map, 0, g * 32, s.row_tile * C::kConsumers, s.expert);
        ptx::prefetch_box(&args.scale_map, g * kTileRows, s.row_tile * C::kConsumers, s.expert);
      }
    }
  });
  smem.loaded = ready ? stage : 0;
}

// One thread, when that kernel has ended: the x that belongs to them.  Blocks of a cluster, which send each other x,
// first have to agree on what they work on.
template <class C>
__device__ void follow_early(const Arguments& args, typename C::Smem& smem) {
  if (C::kCluster > 1) return;
  int stage = 0;
  for (int i = 0; stage < smem.loaded; ++i) {
    const Segment s = smem.segment[i];
    for (int g = s.first_group; g < s.first_group + s.groups && stage < smem.loaded; g += C::kStageGroups, ++stage) {
      ptx::barrier_expect(&smem.full[stage], C::kStageGroups * C::Tokens::count(s.tokens) * kTileCols);
      copy_x<C>(args, smem, s, g, stage);
    }
  }
}

// One thread: what was planned is not what is to be done.  Waits for what it asked for, and plans anew.
template <class C>
__device__ void begin_again(const Params& p, typename C::Smem& smem) {
  for (int stage = 0; stage < smem.loaded; ++stage) {
    if (C::kCluster > 1) ptx::barrier_arrive(&smem.full[stage]);
    ptx::barrier_wait(&smem.full[stage], 0);
    ptx::barrier_end(&smem.full[stage]);
    ptx::barrier_init(&smem.full[stage], 1);
  }
  ptx::barrier_init_fence();
  smem.loaded = 0;
  plan_early<C>(p, smem, smem.planned, [](const Segment&) {});
}

// One thread: keeps the ring full, three copies a stage.  Of stages whose weights are under way nothing is left to ask
// for, or, in a cluster, x.
template <class C>
__device__ void produce(const Arguments& args, typename C::Smem& smem) {
  const Params& p = args.p;
  Ring<kSegments> segments;
  const int rank = Team<C::kCluster>::rank();
  const bool token_scales = p.x_scale_stride == 1 && !C::kGroupScale;
  Ring<C::kStages> ring;
  Ring<C::kScaleSlots> tile;
  int loaded = smem.loaded;
  if (p.offsets == nullptr) {
    wait_for_previous();
    follow_early<C>(args, smem);
  }
  for (Segment s = next_segment<false>(smem, segments); s.groups > 0; s = next_segment<false>(smem, segments)) {
    if (token_scales && s.owner) {
      ptx::barrier_wait(&smem.scales_empty[tile.stage], tile.phase ^ 1);
      ptx::barrier_expect(&smem.scales_full[tile.stage], C::kScaleBox * 4);
      ptx::copy_box(smem.x_scale[tile.stage], &args.x_scale_map, s.first_row / 4 * 4, &smem.scales_full[tile.stage],
                    ptx::kEvictNormal);  // copies begin at multiples of 16 bytes
      tile.advance();
    }
    const int x_bytes = C::Tokens::count(s.tokens) * kTileCols;
#pragma unroll 1
    for (int g = s.first_group; g < s.first_group + s.groups; g += C::kStageGroups, ring.advance()) {
      const bool early = loaded > 0;
      if (early) --loaded;
      if (early && C::kCluster == 1) continue;
      uint64_t* full = &smem.full[ring.stage];
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      ptx::barrier_expect(full, C::kStageGroups * x_bytes + (early ? 0 : weight_bytes<C>(p)));
      if constexpr (C::kCluster > 1) ptx::barrier_arrive_at(&smem.peer_free[ring.stage], rank ^ 1);
      if (!early) copy_weights<C>(args, smem, s, g, ring.stage);
      if constexpr (C::kCluster == 1) {
        copy_x<C>(args, smem, s, g, ring.stage);
      } else {  // one group of the stage for both blocks; the other block sends the other group
        ptx::barrier_wait(&smem.peer_free[ring.stage], ring.phase);
        ptx::copy_box_to_all(smem.x[ring.stage] + rank * x_bytes, &args.x_map[C::Tokens::index(s.tokens)], 0,
                             s.first_row, g + rank, full, (1 << C::kCluster) - 1, ptx::kEvictNormal);
      }
    }
    if (s.last) break;
  }
  if (C::kStageGroups == 2 && !args.looks_ahead) return;
  // Consumers that look ahead fetch two groups after the last, too: let them read something.
  for (int g = 0; g < 2; g += C::kStageGroups, ring.advance()) {
    ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
    ptx::barrier_arrive(&smem.full[ring.stage]);
  }
}

}  // namespace w4afp8::grouped_gemm
