// A whole layer of routed experts for few rows an expert, in one launch.  Blocks stay for the whole layer, one a
// multiprocessor, and tell each other by signals in memory what is ready, where five launches would drain and fill the
// machine five times.  Order of a block: plan, quantize its tokens, gate_up tiles (the last block at a run activates
// and requantizes it; few pairs: each its own), down tiles, and when every block has done so (few pairs: as products
// come) its part of the weighted sums.
#pragma once
#include "../../overlap.cuh"
#include "combine.cuh"
#include "epilogue.cuh"
#include "requantize.cuh"

namespace w4afp8::moe::layer {

template <class C>
__device__ void consume(const Arguments<C>& args, typename C::Smem& smem) {
  const Layer& p = args.layer;
  const Place at = find_place<C>(smem, p.hidden);
  Ring<kSegments> segments;
  Ring<C::kStages> ring;
  Segment s;
  bool multiplied = false;
  GateUse gate_use;
  while (next_segment<true>(smem, segments, s)) {
    multiplied = true;
    float acc[C::kTokens / 2];
    float2 x_scale[C::kTokens / 8];
    multiply<C>(p, smem, ring, s, at, acc, x_scale);
    if (!s.owner) {
      leave_partial<C>(args.partial, s, at, acc);
      continue;
    }
    add_partials<C>(args.partial, s, at, acc);
    uint32_t words[C::kTokens / 4];
    round_all<C>(p, acc, x_scale, words);
    if (s.phase == kGateUp) {
      activate<C>(args, smem, s, at, words, gate_use);
    } else {
      store_down<C>(p, C::kFew ? args.few.down : p.down, s, at, words);
    }
  }
  gate_use.wait(smem, at.consumer);  // no arrival is left behind
  if constexpr (C::kFew) {
    ptx::barrier_wait(&smem.few.rows_known, 0);
    combine_few(p, args.few.down, smem.few.rows);
  } else {
    typename C::Signals& signals = args.state->signals[smem.set];
    ptx::named_barrier(15, kConsumerThreads);
    if (threadIdx.x == 0) release_add(&signals.blocks_done);
    // Rows and weights are looked up while other blocks still multiply.  Whoever has multiplied knows that they are
    // there.
    if (!multiplied) await(&signals.tokens_ready, p.routing.tokens * token_parts(p));
    const Sums<kSumPieces> mine(p);
    const Choices held = look_up(p, mine);
    if (threadIdx.x == 0) {
      await(&signals.blocks_done, gridDim.x);
      if (blockIdx.x == 0) ++args.state->launches;  // every block has read it
    }
    ptx::named_barrier(15, kConsumerThreads);
    combine(p, mine, held);
  }
}

// A warp of every block: the set of the launch before this one becomes that of the next.
template <class C>
__device__ void clear_other_set(const Arguments<C>& args, int other) {
  const int from = blockIdx.x * 32 + threadIdx.x % 32, step = gridDim.x * 32;
  constexpr int kWords = sizeof(typename C::Signals) / sizeof(uint32_t);
  uint32_t* words = reinterpret_cast<uint32_t*>(&args.state->signals[other]);
  for (int i = from; i < kWords; i += step) words[i] = 0;
  if constexpr (C::kFew) {
    uint4* rows = reinterpret_cast<uint4*>(args.few.rows[other]);
    const int count = args.state->rows[other] * (sizeof(FewRow) / sizeof(uint4));
    for (int i = from; i < count; i += step) rows[i] = {kAbsent, kAbsent, kAbsent, kAbsent};
  }
}

// What the warp that clears does besides, of few pairs.
template <class C>
__device__ void tend_few(const Arguments<C>& args, typename C::Smem& smem) {
  const Layer& p = args.layer;
  typename C::State& state = *args.state;
  uint32_t& blocks_done = state.signals[smem.set].blocks_done;
  find_rows(p, smem.plan, smem.few.rows);
  ptx::barrier_arrive(&smem.few.rows_known);  // every lane has stored some of them, and says so itself
  __syncwarp();
  const bool first = threadIdx.x % 32 == 0;
  if (first) {
    add(&blocks_done);  // what this launch needs to know of the last one is read
  }
  if (tiles_are_few(p, smem.plan.runs)) {
    requantize_tiles<C>(p, smem.plan, *args.few.values, args.few.rows[smem.set]);
  } else {
    requantize_groups<C>(p, smem.plan, state.signals[smem.set], args.few.rows[smem.set]);
  }
  if (first && blockIdx.x == 0) {
    await(&blocks_done, gridDim.x);
    ++state.launches;
    state.rows[smem.set] = p.routing.tokens * p.routing.top_k;
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Arguments<C> args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& smem = *reinterpret_cast<typename C::Smem*>(shared);
  const Layer& p = args.layer;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::kStages; ++i) {
      ptx::barrier_init(&smem.weights_full[i], 1);
      ptx::barrier_init(&smem.x_full[i], C::kFew ? C::kTokens : 1);
      ptx::barrier_init(&smem.empty[i], 4 * kConsumers * ptx::kArrivals);
    }
    if constexpr (ptx::kForRacecheck) {
      for (auto& gate_read : smem.checked.gate_read) ptx::barrier_init(&gate_read, 128);
    }
    for (int i = 0; i < kSegments; ++i) {
      ptx::barrier_init(&smem.segment_full[i], 1);
      ptx::barrier_init(&smem.segment_empty[i], kSegmentReaders<C>);
    }
    if constexpr (C::kFew) ptx::barrier_init(&smem.few.rows_known, 32);
    ptx::barrier_init_fence();
  }
  wait_for_previous();
  const int parts = token_parts(p), token_units = p.routing.tokens * parts;
  Token held;
  if (threadIdx.x < kConsumerThreads && blockIdx.x < token_units) read_token(p, blockIdx.x / parts, held);
  if (threadIdx.x == kThreads - 1) smem.set = args.state->launches % 2;
  make_plan<C>(p, smem.plan);

  typename C::Signals& signals = args.state->signals[smem.set];
  if (warp >= 4 * kConsumers) {
    if constexpr (C::kMovesRegisters) ptx::registers_give<C::kLoaderRegisters>();
    if (warp == 4 * kConsumers && ptx::elect_one()) load_weights<C>(p, smem);
    if (warp == 4 * kConsumers + 1) {
      if constexpr (C::kFew) {
        ask_for_activations<C>(smem, args.few.rows[smem.set]);
      } else if (ptx::elect_one()) {
        load_activations<C>(p, smem, signals);
      }
    }
    if (warp == 4 * kConsumers + 2 && ptx::elect_one()) plan_segments<C>(p, smem, signals);
    if (warp == 4 * kConsumers + 3) {
      clear_other_set<C>(args, smem.set ^ 1);
      if constexpr (C::kFew) {
        tend_few<C>(args, smem);
      } else {
        requantize_groups<C>(p, smem.plan, signals, nullptr);
      }
    }
  } else {
    if constexpr (C::kMovesRegisters) ptx::registers_take<C::kConsumerRegisters>();
    int quantized = 0;
    for (int unit = blockIdx.x; unit < token_units; unit += gridDim.x, ++quantized) {
      const int following = unit + static_cast<int>(gridDim.x);
      Token next;
      if (!C::kFew && following < token_units) read_token(p, following / parts, next);
      FewRow* few = C::kFew ? args.few.rows[smem.set] : nullptr;
      quantize_token<C>(p, smem, few, unit / parts, unit % parts, held);
      if constexpr (!C::kFew) held = next;
    }
    if (!C::kFew && threadIdx.x == 0 && quantized > 0) release_add(&signals.tokens_ready, quantized);
    consume<C>(args, smem);
  }
}

}  // namespace w4afp8::moe::layer
