// Host side of one instance.
#pragma once
#include "../../grouped_gemm/workspace.h"
#include "kernel.cuh"
#include "launch.h"

namespace w4afp8::moe::layer {

template <class C>
const char* launch(const Layer& p, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(typename C::Smem);
  static_assert(!C::kFew || (kFewPairs == 64 && kFewHidden == 8192 && kFewInner == 2048), "the message says them");
  if (p.hidden % (kTileCols * kStageGroups) != 0 || p.inner % (kTileCols * kStageGroups) != 0) {
    return "the one-launch layer takes hidden and inner sizes that are multiples of 256";
  }
  if (C::kFew && (p.routing.tokens * p.routing.top_k > C::kPairs || p.hidden > kFewHidden || p.inner > kFewInner)) {
    return "this kernel is for few pairs: it holds 64, of hidden up to 8192 and inner up to 2048";
  }
  int blocks = 0;
  cudaError_t error = one_a_multiprocessor(kernel<C>, kShared, &blocks);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  blocks = blocks > kMaxBlocks ? kMaxBlocks : blocks;
  if (C::kFew && p.routing.tokens > blocks) {
    return "this kernel is for few pairs: a block reads one token, and the device has fewer multiprocessors than tokens";
  }
  Arguments<C> args{};
  args.layer = p;
  args.layer.minus_one = ~0u;
  args.layer.row_tiles[kGateUp] = p.inner / (2 * kTileRows);
  args.layer.row_tiles[kDown] = p.weight[kDown].row_blocks / kConsumers;
  for (int phase : {kGateUp, kDown}) args.layer.stages[phase] = p.weight[phase].groups / kStageGroups;
  uint32_t* state = nullptr;
  float* data = nullptr;
  const size_t partial = size_t{2} * blocks * kConsumers * C::kTokens * kTileRows * sizeof(float);
  const size_t rows = 2 * sizeof(FewRows), values = sizeof(FewValues), down = sizeof(FewDown);
  // Few pairs and many have each their own: what one leaves, the other need not know.
  const WorkspaceUser user = C::kFew ? WorkspaceUser::kFewPairs : WorkspaceUser::kLayer;
  const size_t few = C::kFew ? rows + values + down : 0;
  const char* wrong = workspace(stream, sizeof(typename C::State), few + partial, &state, &data, user);
  if (wrong != nullptr) return wrong;
  args.state = reinterpret_cast<typename C::State*>(state);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(data);
  args.partial = reinterpret_cast<uint4*>(bytes + few);
  if constexpr (C::kFew) {
    args.few.rows = reinterpret_cast<FewRows*>(bytes);
    args.few.values = reinterpret_cast<FewValues*>(bytes + rows);
    args.few.down = reinterpret_cast<FewDown*>(bytes + rows + values);
  }
  error = launch_overlapped<Residence::kTogether>(kernel<C>, blocks, kThreads, kShared, stream, args);
  return message(error);
}

}  // namespace w4afp8::moe::layer
