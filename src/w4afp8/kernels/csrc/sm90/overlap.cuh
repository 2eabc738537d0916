// Kernels that follow each other at a small distance: the next one is launched while the last still runs, does what
// needs no result, and waits.
#pragma once
#include <cuda_runtime.h>

#include "../ptx/dependents.cuh"

namespace w4afp8 {

// Whether every block may wait for every other, so that all must run at once.
enum class Residence { kAny, kTogether };

// Host: null, or what went wrong.
inline const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// Host: how many multiprocessors the current device has.
inline cudaError_t multiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error : cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

// Host: prepares a kernel with `shared` bytes of shared memory; says how many blocks are one a multiprocessor.
template <class... Parameters>
cudaError_t one_a_multiprocessor(void (*kernel)(Parameters...), size_t shared, int* blocks) {
  const cudaError_t error = multiprocessors(blocks);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
}

// Host: launch a kernel that calls wait_for_previous.
template <Residence kResidence = Residence::kAny, int kCluster = 1, class... Parameters, class... Arguments>
cudaError_t launch_overlapped(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                              Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[3]{};
  int count = 0;
  const auto add = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    attributes[count].id = id;
    return attributes[count++].val;
  };
  add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  if (kResidence == Residence::kTogether) add(cudaLaunchAttributeCooperative).cooperative = 1;
  if (kCluster > 1) add(cudaLaunchAttributeClusterDimension).clusterDim = {kCluster, 1, 1};
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace w4afp8
