// W4AFP8 grouped GEMM for SM90.  out[t, n] = x_scale[t] * sum_g weight_scale[n, g] * sum_k x[t, k] * code[n, k].
//
// Operands are swapped: the weights are wgmma's A (64 rows), made into e4m3 in registers on the way; the tokens are its
// N (8 .. 160), read from shared memory.  One thread plans what the block works on, one streams codes, scales and x
// through a ring of stages with the bulk copy engine; each consumer warpgroup owns 64 output rows.  Every 128 inputs,
// one scale group, the product is promoted: acc += weight_scale * product, in float32.
#pragma once
#include "../../ptx/copy.cuh"
#include "../overlap.cuh"
#include "arguments.cuh"
#include "config.h"
#include "consumer.cuh"
#include "epilogue.cuh"
#include "partial.cuh"
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

// One thread: keeps the ring full, three copies a stage, one where the weights are under way.
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

template <class C, int kTokens>
__device__ __forceinline__ void consume(const Arguments& args, typename C::Smem& smem, Pipeline<C>& pipe,
                                        Ring<C::kScaleSlots>& tile, const Segment& s, const Place& at) {
  const Params& p = args.p;
  float acc[kTokens / 2];
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) acc[i] = 0.0f;
  if constexpr (C::kProducts == 1) {
    accumulate<C, kTokens>(acc, pipe, smem, at, args, s);
  } else {
    accumulate_overlapped<C, kTokens>(acc, pipe, smem, at, args, s);
  }
  if (!s.owner) return leave_partial<C, kTokens>(args, acc, at);
  add_partials<C, kTokens>(args, acc, s, at);

  float2 scale[kTokens / 8];
  if (C::kGroupScale || p.x_scale_stride == 0) {
    const float all = kCodeUnit * (C::kGroupScale ? 1.0f : __ldg(p.x_scale));
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) scale[j] = {all, all};
  } else {
    ptx::barrier_wait(&smem.scales_full[tile.stage], tile.phase);
    const float* shared = smem.x_scale[tile.stage] + s.first_row % 4 + 2 * (at.thread % 4);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) scale[j] = {shared[8 * j], shared[8 * j + 1]};
    uint32_t loaded = 0;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) loaded |= __float_as_uint(scale[j].x) | __float_as_uint(scale[j].y);
    __syncwarp();
    if (at.thread % 32 == 0) ptx::barrier_arrive_after(&smem.scales_empty[tile.stage], loaded);
    tile.advance();
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) scale[j] = {kCodeUnit * scale[j].x, kCodeUnit * scale[j].y};
  }
  const int row_block = s.row_tile * C::kConsumers + at.consumer;
  if (row_block * kTileRows >= p.rows) return;
  if (p.out_type == OutType::kFloat32) {
    const int row = row_block * kTileRows + at.thread / 32 * 16 + at.thread % 32 / 4;
    store_float<kTokens>(p, acc, scale, s.first_row, s.tokens, row);
  } else {
    uint8_t* staging = smem.out[at.consumer];
    if constexpr (C::kStoresByCopy) {
      store_by_copy<kTokens>(args, acc, scale, s.first_row, s.tokens, row_block, staging, 1 + at.consumer, at.thread);
    } else {
      store_by_warps<kTokens>(p, acc, scale, s.first_row, s.tokens, row_block,
                              staging + at.thread / 32 * (C::kMaxTokens * 32), at.thread);
    }
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kRoom) kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& smem = *reinterpret_cast<typename C::Smem*>(shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::Tokens::kNumber; ++i) ptx::prefetch_map(&args.x_map[i]);
    ptx::prefetch_map(&args.codes_map);
    ptx::prefetch_map(&args.scale_map);
    for (int i = 0; i < C::kStages; ++i) {
      ptx::barrier_init(&smem.full[i], 1);
      ptx::barrier_init(&smem.empty[i], 4 * C::kConsumers);
    }
    for (int i = 0; i < C::kScaleSlots; ++i) {
      ptx::barrier_init(&smem.scales_full[i], 1);
      ptx::barrier_init(&smem.scales_empty[i], 4 * C::kConsumers);
    }
    for (int i = 0; i < kSegments; ++i) {
      ptx::barrier_init(&smem.segment_full[i], 1);
      ptx::barrier_init(&smem.segment_empty[i], kSegmentReaders<C>);
    }
    for (int i = 0; C::kCluster > 1 && i < C::kStages; ++i) ptx::barrier_init(&smem.peer_free[i], 1);
    ptx::barrier_init_fence();
  }
  if constexpr (C::kCluster > 1) ptx::cluster_barrier();  // the other block's barriers are there to be arrived at
  // What the kernel before writes is not needed to plan, but for offsets, and those are most likely there: the kernel
  // before the last one wrote them.  What they say now is planned, and looked at again.
  const int row_tiles = divide_up(args.p.rows, kTileRows * C::kConsumers * C::kCluster);
  const Offsets<C::kThreads> early(args.p);
  make_plan<C::kThreads>(args.p, early, row_tiles, C::kMaxTokens, smem.plan);
  const bool loads = threadIdx.x == 128 * C::kConsumers;
  if (loads) begin_early<C>(args, smem);
  bool changed = false;
  if (args.p.offsets != nullptr) {
    wait_for_previous();
    const Offsets<C::kThreads> now(args.p);
    if (loads) follow_early<C>(args, smem);
    changed = now.differ(early);
  }
  if (__syncthreads_or(changed)) {
    make_plan<C::kThreads>(args.p, Offsets<C::kThreads>(args.p), row_tiles, C::kMaxTokens, smem.plan);
    if (loads) begin_again<C>(args.p, smem);
    __syncthreads();
  }

  if (warp >= 4 * C::kConsumers) {
    if constexpr (C::kMovesRegisters) ptx::registers_give<C::kLoaderRegisters>();
    if (warp == 4 * C::kConsumers && ptx::elect_one()) produce<C>(args, smem);
    if (warp == 4 * C::kConsumers + 1 && ptx::elect_one()) plan_segments<C>(args.p, smem);
  } else {
    if constexpr (C::kMovesRegisters) ptx::registers_take<C::kConsumerRegisters>();
    wait_for_previous();  // for whoever reads what is written here, too
    const Place at = find_place<C>(smem, args.p.weight_scale_float);
    Pipeline<C> pipe;
    Ring<C::kScaleSlots> tile;
    Ring<kSegments> segments;
    for (int i = 0; i < 3 - C::kStageGroups; ++i) pipe.fetch.advance();
    Segment s = next_segment<true>(smem, segments);
    if ((C::kStageGroups == 1 || args.looks_ahead) && s.groups > 0) fill<C>(pipe, smem, at, args);
    for (; s.groups > 0; s = next_segment<true>(smem, segments)) {
      C::Tokens::dispatch(s.tokens, [&]<int kTokens>() { consume<C, kTokens>(args, smem, pipe, tile, s, at); });
      if (s.last) break;
    }
    if constexpr (C::kStoresByCopy) ptx::stores_have_read();
  }
  if constexpr (C::kCluster > 1) {  // no block leaves while the other may still write to it
    __syncwarp();
    ptx::cluster_barrier();
  }
}

}  // namespace w4afp8::grouped_gemm
