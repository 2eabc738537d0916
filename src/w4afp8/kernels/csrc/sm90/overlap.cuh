// Kernels that follow each other at a small distance: the next one is launched while the last still runs, does what
// needs no result, and waits.
#pragma once
#include <cuda_runtime.h>

namespace w4afp8 {

// Device: everything the kernels before this one wrote is visible after this line; nothing of theirs may be read, and
// nothing written, before it.  Then lets the kernel after this one start its own prologue.
__device__ __forceinline__ void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Host: launch a kernel that calls wait_for_previous.
template <class... Parameters, class... Arguments>
cudaError_t launch_overlapped(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                              Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace w4afp8
