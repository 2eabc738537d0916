// A whole layer of routed experts for few rows an expert, in one launch.  Blocks stay for the whole layer, one a
// multiprocessor, and tell each other by signals in memory what is ready, where five launches would drain and fill the
// machine five times.  Order of a block: plan, quantize its tokens, gate_up tiles (the last block at a run activates and
// requantizes it), down tiles, and when every block has done so (few pairs: as products come) its part of the weighted
// sums.
#pragma once
#include "../../overlap.cuh"
#include "combine.cuh"
#include "epilogue.cuh"
#include "requantize.cuh"

namespace w4afp8::moe::layer {

struct Arguments {
  Layer layer;
  State* state;
  FewRows* rows;   // two sets, absent where nothing was written
  FewValues* values;
  void* few_down;
  bool may_be_few;  // whether rows of few pairs here fit these
  uint4* partial;  // [2 phases][blocks][consumers][tokens / 8][128], absent between launches
};

template <class C>
__device__ void consume(const Arguments& args, typename C::Smem& smem) {
  const Layer& p = args.layer;
  const Place at = find_place<C>(smem, p.hidden);
  Ring<kSegments> segments;
  Ring<C::kStages> ring;
  Segment s;
  bool gate_used = false;
  while (next_segment<true>(smem, segments, s)) {
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
      activate<C>(p, smem, args.state, args.values, s, at, words, gate_used);
    } else {
      store_down<C>(p, smem.down, s, at, words);
    }
  }
  if (gate_used) ptx::named_barrier(gate_empty(at.consumer), 256);  // no arrival is left behind
  if (C::kTokens == 8 && smem.few != nullptr) {
    ptx::barrier_wait(&smem.rows_known, 0);
    return combine_few(p, smem.down, smem.few_rows);
  }
  ptx::named_barrier(15, kConsumerThreads);
  if (threadIdx.x == 0) {
    Signals& signals = args.state->signals[smem.set];
    release_add(&signals.blocks_done);
    await(&signals.blocks_done, gridDim.x);
    if (blockIdx.x == 0) ++args.state->launches;  // every block has read it
  }
  ptx::named_barrier(15, kConsumerThreads);
  combine(p);
}

template <class C>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& smem = *reinterpret_cast<typename C::Smem*>(shared);
  const Layer& p = args.layer;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::kStages; ++i) {
      ptx::barrier_init(&smem.weights_full[i], 1);
      ptx::barrier_init(&smem.x_full[i], 1);
      ptx::barrier_init(&smem.empty[i], 4 * kConsumers);
    }
    for (int i = 0; i < kSegments; ++i) {
      ptx::barrier_init(&smem.segment_full[i], 1);
      ptx::barrier_init(&smem.segment_empty[i], kSegmentReaders);
    }
    ptx::barrier_init(&smem.rows_known, 1);
    ptx::barrier_init_fence();
  }
  wait_for_previous();
  const int parts = token_parts(p), token_units = p.routing.tokens * parts;
  Token held;
  if (threadIdx.x < kConsumerThreads && blockIdx.x < token_units) read_token(p, blockIdx.x / parts, held);
  if (threadIdx.x == kThreads - 1) smem.set = args.state->launches % 2;
  make_plan<C::kTokens>(p, smem.plan);
  if (threadIdx.x == 0) {
    const bool few = C::kTokens == 8 && args.may_be_few && smem.plan.local <= kFewHere;
    smem.few = few ? args.rows + smem.set : nullptr;
    smem.down = few ? args.few_down : p.down;
  }
  __syncthreads();

  Signals& signals = args.state->signals[smem.set];
  if (warp >= 4 * kConsumers) {
    if constexpr (C::kMovesRegisters) ptx::registers_give<C::kLoaderRegisters>();
    if (warp == 4 * kConsumers && ptx::elect_one()) load_weights<C>(p, smem);
    if (warp == 4 * kConsumers + 1) {
      if (C::kTokens == 8 && smem.few != nullptr) {
        if constexpr (C::kTokens == 8) ask_for_activations<C>(smem, *smem.few);
      } else if (ptx::elect_one()) {
        load_activations<C>(p, smem, signals);
      }
    }
    if (warp == 4 * kConsumers + 2 && ptx::elect_one()) plan_segments<C>(p, smem);
    if (warp == 4 * kConsumers + 3) {
      constexpr int kWords = sizeof(Signals) / sizeof(uint32_t);
      uint32_t* other = reinterpret_cast<uint32_t*>(&args.state->signals[smem.set ^ 1]);
      for (int i = blockIdx.x * 32 + threadIdx.x % 32; i < kWords; i += gridDim.x * 32) other[i] = 0;
      const bool few = C::kTokens == 8 && smem.few != nullptr;
      if (few) {
        find_rows(p, smem.plan, smem.few_rows);
        __syncwarp();
      }
      if (few && threadIdx.x % 32 == 0) {
        ptx::barrier_arrive(&smem.rows_known);
        add(&signals.blocks_done);  // nobody waits for the end: the number of launches changes when every block has read it
        if (blockIdx.x == 0) {
          await(&signals.blocks_done, gridDim.x);
          ++args.state->launches;
        }
      }
      uint4* rows = reinterpret_cast<uint4*>(&args.rows[smem.set ^ 1]);
      for (int i = blockIdx.x * 32 + threadIdx.x % 32; i < static_cast<int>(sizeof(FewRows) / 16); i += gridDim.x * 32) {
        rows[i] = {kAbsent, kAbsent, kAbsent, kAbsent};
      }
      if (few && tiles_are_few(p, smem.plan)) {
        requantize_tiles<C::kTokens>(p, smem.plan, *args.values, *smem.few);
      }
    }
  } else {
    if constexpr (C::kMovesRegisters) ptx::registers_take<C::kConsumerRegisters>();
    for (int unit = blockIdx.x; unit < token_units; unit += gridDim.x) {
      if (unit != static_cast<int>(blockIdx.x)) read_token(p, unit / parts, held);
      FewRows* few = C::kTokens == 8 ? smem.few : nullptr;
      quantize_token<C>(p, smem, few, unit / parts, unit % parts, held);
      if (threadIdx.x == 0 && few == nullptr) release_add(&signals.tokens_ready);
    }
    consume<C>(args, smem);
  }
}

}  // namespace w4afp8::moe::layer
