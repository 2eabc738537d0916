// Host side of one instance.
#pragma once
#include "../../grouped_gemm/workspace.h"
#include "kernel.cuh"
#include "launch.h"

namespace w4afp8::moe::layer {

template <class C>
const char* launch(const Layer& p, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(typename C::Smem);
  int blocks = 0;
  cudaError_t error = one_a_multiprocessor(kernel<C>, kShared, &blocks);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  blocks = blocks > kMaxBlocks ? kMaxBlocks : blocks;
  Arguments args{};
  args.layer = p;
  args.layer.row_tiles[kGateUp] = p.inner / (2 * kTileRows);
  args.layer.row_tiles[kDown] = (p.weight[kDown].row_blocks + kConsumers - 1) / kConsumers;
  for (int phase : {kGateUp, kDown}) args.layer.stages[phase] = p.weight[phase].groups / kStageGroups;
  uint32_t* state = nullptr;
  const size_t partial = size_t{2} * blocks * kConsumers * C::kTokens * kTileRows * sizeof(float);
  const char* wrong = workspace(stream, sizeof(State), partial, &state, &args.partial, WorkspaceUser::kLayer);
  if (wrong != nullptr) return wrong;
  args.state = reinterpret_cast<State*>(state);
  error = launch_overlapped<Residence::kTogether>(kernel<C>, blocks, kThreads, kShared, stream, args);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace w4afp8::moe::layer
