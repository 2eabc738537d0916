// Host side of one instance: describe x to the copy engine, size the grid, launch.
#pragma once
#include <cudaTypedefs.h>

#include "kernel.cuh"
#include "launch.h"
#include "workspace.h"

namespace w4afp8::grouped_gemm {

inline const char* map_activations(CUtensorMap* map, const Params& p, int box_rows) {
  static PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled; it is older than CUDA 12";
  const cuuint64_t shape[2] = {static_cast<cuuint64_t>(p.cols), static_cast<cuuint64_t>(p.tokens)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(p.cols)};
  const cuuint32_t box[2] = {kTileCols, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t step[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(p.x), shape, pitch, box, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "x cannot be described to the copy engine: is it 16-byte aligned?";
}

template <class C>
const char* launch(const Params& p, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(typename C::Smem);
  int device = 0, blocks = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  Arguments args{};
  args.p = p;
  if (const char* wrong = map_activations(&args.x_map, p, C::kBoxRows)) return wrong;
  if (p.split_groups > 0) {
    const size_t slots = static_cast<size_t>(blocks) * C::kConsumers;
    const char* wrong = workspace(stream, slots * sizeof(uint32_t), slots * C::kMaxTokens * 64 * sizeof(float),
                                  &args.ready, &args.partial);
    if (wrong != nullptr) return wrong;
  }
  kernel<C><<<blocks, C::kThreads, kShared, stream>>>(args);
  error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace w4afp8::grouped_gemm
