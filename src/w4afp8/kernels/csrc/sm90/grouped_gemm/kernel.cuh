// W4AFP8 grouped GEMM for SM90.  out[t, n] = x_scale[t] * sum_g weight_scale[n, g] * sum_k x[t, k] * code[n, k].
//
// Operands are swapped: the weights are wgmma's A (64 rows), made into e4m3 in registers on the way; the tokens are its
// N (8 .. 160), read from shared memory.  One thread streams codes, scales and x through a ring of stages with the bulk
// copy engine, and plans what the block begins with, before the kernel before has ended; one plans what follows; each
// consumer warpgroup owns 64 output rows.  Every 128 inputs, one scale group, the product is promoted: acc +=
// weight_scale * product, in float32.
#pragma once
#include "../overlap.cuh"
#include "arguments.cuh"
#include "config.h"
#include "consumer.cuh"
#include "epilogue.cuh"
#include "load.cuh"
#include "partial.cuh"

namespace w4afp8::grouped_gemm {

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
    const float all = kCodeUnit * (C::kGroupScale ? 1.0f : *p.x_scale);
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
    if (ptx::arrives(at.thread)) ptx::barrier_arrive_after(&smem.scales_empty[tile.stage], loaded);
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
      ptx::barrier_init(&smem.empty[i], 4 * C::kConsumers * ptx::kArrivals);
    }
    for (int i = 0; i < C::kScaleSlots; ++i) {
      ptx::barrier_init(&smem.scales_full[i], 1);
      ptx::barrier_init(&smem.scales_empty[i], 4 * C::kConsumers * ptx::kArrivals);
    }
    for (int i = 0; i < kSegments; ++i) {
      ptx::barrier_init(&smem.segment_full[i], 1);
      ptx::barrier_init(&smem.segment_empty[i], kSegmentReaders<C>);
    }
    for (int i = 0; C::kCluster > 1 && i < C::kStages; ++i) ptx::barrier_init(&smem.peer_free[i], 1);
    ptx::barrier_init_fence();
  }
  if constexpr (C::kCluster > 1) ptx::cluster_barrier();  // the other block's barriers are there to be arrived at
  // Nothing that the kernel before writes is needed to plan but offsets.  Where an earlier kernel wrote them, they are
  // there; else they are the last routing's, or nonsense.  What they say now is planned, and looked at again.
  const int row_tiles = divide_up(args.p.rows, kTileRows * C::kConsumers * C::kCluster);
  Offsets<C::kThreads> offsets(args.p);
  make_plan<C::kThreads>(args.p, offsets, row_tiles, C::kMaxTokens, smem.plan);
  const bool loads = threadIdx.x == 128 * C::kConsumers;
  if (loads) begin_early<C>(args, smem);
  bool changed = false;
  if (args.p.offsets != nullptr) {
    wait_for_previous();
    const Offsets<C::kThreads> now(args.p);
    if (loads) follow_early<C>(args, smem);
    changed = now.differ(offsets);
    offsets = now;
  }
  if (__syncthreads_or(changed)) {
    make_plan<C::kThreads>(args.p, offsets, row_tiles, C::kMaxTokens, smem.plan);
    if (loads) begin_again<C>(args.p, smem);
    __syncthreads();
  }

  if (warp >= 4 * C::kConsumers) {
    ptx::registers_give<C::kLoaderRegisters>();
    if (warp == 4 * C::kConsumers && ptx::elect_one()) produce<C>(args, smem);
    if (warp == 4 * C::kConsumers + 1 && ptx::elect_one()) plan_segments<C>(args.p, smem);
  } else {
    ptx::registers_take<C::kConsumerRegisters>();
    wait_for_previous();  // without offsets the first wait: scales are read below, results written
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
