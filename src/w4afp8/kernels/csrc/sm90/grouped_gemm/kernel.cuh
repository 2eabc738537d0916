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

// One thread: asks for the first weights of a segment, into L2 and no farther.  It may do so while the kernel before
// still runs, whoever wrote the weights.
template <class C>
__device__ void prefetch_weights(const Arguments& args, const Segment& s) {
  const int first_block = s.row_tile * C::kConsumers;
  const int end = s.first_group + min(s.groups, kEarlyStages * C::kStageGroups);
#pragma unroll 1
  for (int g = s.first_group; g < end; g += C::kStageGroups) {
    ptx::prefetch_box(&args.codes_map, 0, g * 32, first_block, s.expert);
    ptx::prefetch_box(&args.scale_map, g * kTileRows, first_block, s.expert);
  }
}

// One thread: keeps the ring full, three copies a stage.  Row blocks beyond the expert's last are filled with zeros.
template <class C>
__device__ void produce(const Arguments& args, typename C::Smem& smem, bool waits_late) {
  const Params& p = args.p;
  Ring<kSegments> segments;
  Segment s = next_segment<false>(smem, segments);
  if (waits_late) {
    prefetch_weights<C>(args, s);
    wait_for_previous();
  }
  const int weight_bytes = C::kConsumers * (kTileBytes + kTileRows * (p.weight_scale_float ? 4 : 2));
  const int rank = Team<C::kCluster>::rank();
  const bool token_scales = p.x_scale_stride == 1 && !C::kGroupScale;
  Ring<C::kStages> ring;
  Ring<C::kScaleSlots> tile;
  for (; s.groups > 0; s = next_segment<false>(smem, segments)) {
    if (token_scales && s.owner) {
      ptx::barrier_wait(&smem.scales_empty[tile.stage], tile.phase ^ 1);
      ptx::barrier_expect(&smem.scales_full[tile.stage], C::kScaleBox * 4);
      ptx::copy_box(smem.x_scale[tile.stage], &args.x_scale_map, s.first_row / 4 * 4, &smem.scales_full[tile.stage],
                    ptx::kEvictNormal);  // copies begin at multiples of 16 bytes
      tile.advance();
    }
    const CUtensorMap* x_map = &args.x_map[C::Tokens::index(s.tokens)];
    const int x_bytes = C::Tokens::count(s.tokens) * kTileCols;
    const int bytes = C::kStageGroups * (weight_bytes + x_bytes);
    const int first_block = s.row_tile * C::kConsumers;
    const uint64_t policy = s.shared ? ptx::kEvictNormal : ptx::kEvictFirst;
#pragma unroll 1
    for (int g = s.first_group; g < s.first_group + s.groups; g += C::kStageGroups, ring.advance()) {
      uint64_t* full = &smem.full[ring.stage];
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      ptx::barrier_expect(full, bytes);
      if constexpr (C::kCluster > 1) ptx::barrier_arrive_at(&smem.peer_free[ring.stage], rank ^ 1);
      ptx::copy_box(smem.codes[ring.stage], &args.codes_map, 0, g * 32, first_block, s.expert, full, policy);
      ptx::copy_box(smem.scale[ring.stage].bytes, &args.scale_map, g * kTileRows, first_block, s.expert, full, policy);
      if constexpr (C::kCluster == 1) {
        ptx::copy_box(smem.x[ring.stage], x_map, 0, s.first_row, g, full, ptx::kEvictNormal);
      } else {  // one group of the stage for both blocks; the other block sends the other group
        ptx::barrier_wait(&smem.peer_free[ring.stage], ring.phase);
        ptx::copy_box_to_all(smem.x[ring.stage] + rank * x_bytes, x_map, 0, s.first_row, g + rank, full,
                             (1 << C::kCluster) - 1, ptx::kEvictNormal);
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
  accumulate<C, kTokens>(acc, pipe, smem, at, args, s);
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
  // Without offsets nothing that a kernel before wrote is needed to know what to do, nor to ask for the weights.
  const bool waits_late = args.p.offsets == nullptr;
  if (!waits_late) wait_for_previous();
  const int row_tiles = divide_up(args.p.rows, kTileRows * C::kConsumers * C::kCluster);
  make_plan<C::kThreads>(args.p, row_tiles, C::kMaxTokens, smem.plan);

  if (warp >= 4 * C::kConsumers) {
    if constexpr (C::kMovesRegisters) ptx::registers_give<C::kLoaderRegisters>();
    if (warp == 4 * C::kConsumers && ptx::elect_one()) produce<C>(args, smem, waits_late);
    if (warp == 4 * C::kConsumers + 1 && ptx::elect_one()) plan_segments<C>(args.p, smem);
  } else {
    if constexpr (C::kMovesRegisters) ptx::registers_take<C::kConsumerRegisters>();
    wait_for_previous();  // done already, unless this block waits late
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
