// Host side of one instance.
#pragma once
#include "../../grouped_gemm/workspace.h"
#include "kernel.cuh"
#include "launch.h"

namespace w4afp8::moe::layer {

template <class C>
const char* launch(const Layer& p, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(typename C::Smem);
  if (p.hidden % (kTileCols * kStageGroups) != 0 || p.inner % (kTileCols * kStageGroups) != 0) {
    return "the one-launch layer takes hidden and inner sizes that are multiples of 256";
  }
  int blocks = 0;
  cudaError_t error = one_a_multiprocessor(kernel<C>, kShared, &blocks);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  blocks = blocks > kMaxBlocks ? kMaxBlocks : blocks;
  Arguments args{};
  args.layer = p;
  args.layer.row_tiles[kGateUp] = p.inner / (2 * kTileRows);
  args.layer.row_tiles[kDown] = p.weight[kDown].row_blocks / kConsumers;
  for (int phase : {kGateUp, kDown}) args.layer.stages[phase] = p.weight[phase].groups / kStageGroups;
  uint32_t* state = nullptr;
  const int pairs = p.routing.tokens * p.routing.top_k;
  args.may_be_few = C::kTokens == 8 && pairs <= kFewPairs && p.hidden <= kFewHidden && p.inner <= kFewInner;
  const size_t partial = size_t{2} * blocks * kConsumers * C::kTokens * kTileRows * sizeof(float);
  const size_t rows = 2 * sizeof(FewRows), down = size_t{kFewHere} * kFewHidden * 2;
  const size_t few = rows + down + sizeof(FewValues);
  float* data = nullptr;
  const char* wrong = workspace(stream, sizeof(State), few + partial, &state, &data, WorkspaceUser::kLayer);
  if (wrong != nullptr) return wrong;
  args.state = reinterpret_cast<State*>(state);
  args.rows = reinterpret_cast<FewRows*>(data);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(data);
  args.few_down = bytes + rows;
  args.values = reinterpret_cast<FewValues*>(bytes + rows + down);
  args.partial = reinterpret_cast<uint4*>(bytes + few);
  error = launch_overlapped<Residence::kTogether>(kernel<C>, blocks, kThreads, kShared, stream, args);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace w4afp8::moe::layer
