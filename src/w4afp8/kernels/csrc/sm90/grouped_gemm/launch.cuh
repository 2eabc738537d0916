// Host side of one instance: describe the operands to the copy engine, size the grid, launch.
#pragma once
#include <cudaTypedefs.h>

#include "../overlap.cuh"
#include "kernel.cuh"
#include "launch.h"
#include "workspace.h"

namespace w4afp8::grouped_gemm {

// A row-major array and the box that one copy takes, innermost dimension first.
struct Array {
  const void* data;
  CUtensorMapDataType type;
  int dims;
  cuuint64_t size[4];
  cuuint64_t pitch_bytes[3];  // between neighbours along dimensions 1, 2, 3
  cuuint32_t box[4];
  CUtensorMapSwizzle swizzle;
};

inline const char* describe(CUtensorMap* map, const Array& a) {
  static PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled; it is older than CUDA 12";
  const cuuint32_t step[4] = {1, 1, 1, 1};
  const CUresult result = encode(map, a.type, a.dims, const_cast<void*>(a.data), a.size, a.pitch_bytes, a.box, step,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, a.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "a tensor cannot be described to the copy engine: is it 16-byte aligned?";
}

template <class C>
const char* describe_all(Arguments& args) {
  const Params& p = args.p;
  const cuuint64_t groups = p.cols / kTileCols, blocks = p.rows / kTileRows;
  const cuuint64_t tokens = p.tokens, experts = p.experts, cols = p.cols;
  const int scale_bytes = p.weight_scale_float ? 4 : 2;
  Array x{p.x, CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, {kTileCols, tokens, groups}, {cols, kTileCols},
                {kTileCols, C::kMaxTokens, C::kStageGroups / C::kCluster}, CU_TENSOR_MAP_SWIZZLE_128B};
  const Array codes{p.codes, CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, {128, 32 * groups, blocks, experts},
                    {128, groups * kTileBytes, blocks * groups * kTileBytes},
                    {128, 32 * C::kStageGroups, C::kConsumers, 1}, CU_TENSOR_MAP_SWIZZLE_NONE};
  const cuuint64_t row = groups * kTileRows * scale_bytes;
  const Array scale{p.weight_scale,
                    p.weight_scale_float ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    3, {groups * kTileRows, blocks, experts}, {row, blocks * row},
                    {kTileRows * C::kStageGroups, C::kConsumers, 1}, CU_TENSOR_MAP_SWIZZLE_NONE};
  const cuuint64_t out_row = p.rows * 2;
  Array out{p.out, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, {static_cast<cuuint64_t>(p.rows), tokens}, {out_row},
                  {kTileRows, 8}, CU_TENSOR_MAP_SWIZZLE_128B};
  const Array x_scale{p.x_scale, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 1, {tokens}, {}, {C::kScaleBox},
                      CU_TENSOR_MAP_SWIZZLE_NONE};
  const char* wrong = nullptr;
  for (int i = 0; i < C::Tokens::kNumber && wrong == nullptr; ++i) {
    x.box[1] = C::Tokens::kAll[i];
    wrong = describe(&args.x_map[i], x);
  }
  if (wrong == nullptr && p.x_scale_stride == 1 && !C::kGroupScale) wrong = describe(&args.x_scale_map, x_scale);
  if (C::kStoresByCopy && p.out_type != OutType::kFloat32) {
    if (wrong == nullptr) wrong = describe(&args.out_map, out);
    out.box[1] = kStoreTokens;
    if (wrong == nullptr) wrong = describe(&args.out_wide_map, out);
  }
  if (wrong == nullptr) wrong = describe(&args.codes_map, codes);
  if (wrong == nullptr) wrong = describe(&args.scale_map, scale);
  return wrong;
}

// The largest grid of whole clusters of this kernel that runs at once, at most `blocks`: a split tile's owner waits
// for the others.
template <class C>
cudaError_t clusters_at_once(size_t shared, int blocks, int* found) {
  static int clusters = 0;  // of one kernel on one kind of device
  if (clusters == 0) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks / C::kCluster * C::kCluster);
    config.blockDim = dim3(C::kThreads);
    config.dynamicSmemBytes = shared;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {C::kCluster, 1, 1};
    config.attrs = &attribute;
    config.numAttrs = 1;
    int most = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&most, kernel<C>, &config);
    if (error != cudaSuccess) return error;
    if (most == 0) return cudaErrorLaunchOutOfResources;
    clusters = most;
  }
  *found = min(clusters, blocks / C::kCluster) * C::kCluster;
  return cudaSuccess;
}

template <class C>
const char* launch(const Params& p, cudaStream_t stream) {
  if (C::kScales == Scales::kBFloat16 && p.weight_scale_float) {
    return "this kernel reads bfloat16 scales, found float32";
  }
  if (p.x_scale_groups != C::kGroupScale) {
    return C::kGroupScale ? "this kernel reads a scale per token and group of 128, found one per token or one in all"
                          : "this kernel reads a scale per token or one in all, found one per token and group of 128";
  }
  constexpr size_t kShared = sizeof(typename C::Smem);
  int blocks = 0;
  cudaError_t error = one_a_multiprocessor(kernel<C>, kShared, &blocks);
  blocks *= C::kBlocks;
  if constexpr (C::kCluster > 1) {
    if (error == cudaSuccess) error = clusters_at_once<C>(kShared, blocks, &blocks);
  }
  if (error != cudaSuccess) return cudaGetErrorString(error);
  Arguments args{};
  args.p = p;
  args.looks_ahead = C::kProducts == 2 || (C::kMaxTokens > 16 && p.cols > 4 * kTileCols);
  args.minus_one = ~0u;
  args.upper_bytes = p.weight_scale_float ? 0x3210 : 0x1044;  // a bfloat16 is the upper half of a float; byte 4 is zero
  args.lower_bytes = p.weight_scale_float ? 0x7654 : 0x3244;
  if (const char* wrong = describe_all<C>(args)) return wrong;
  if (p.split_groups > 0) {
    const size_t slots = static_cast<size_t>(blocks) * C::kConsumers;
    const char* wrong = workspace(stream, C::kFlags ? slots * sizeof(uint32_t) : 0,
                                  slots * C::kMaxTokens * kTileRows * sizeof(float), &args.ready, &args.partial,
                                  C::kFlags ? WorkspaceUser::kLargeTiles : WorkspaceUser::kSmallTiles);
    if (wrong != nullptr) return wrong;
  }
  error = launch_overlapped<Residence::kAny, C::kCluster>(kernel<C>, blocks, C::kThreads, kShared, stream, args);
  return message(error);
}

}  // namespace w4afp8::grouped_gemm
