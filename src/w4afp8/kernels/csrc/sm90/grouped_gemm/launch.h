// The door to the grouped GEMM kernels: a schedule by name, a problem, a stream.  Returns null, or what went wrong.
#pragma once
#include <cuda_runtime_api.h>

#include "params.h"

namespace w4afp8::grouped_gemm {

using Launch = const char* (*)(const Params&, cudaStream_t);

struct Instance {
  const char* name;
  Launch launch;
};

const char* run(const char* schedule, const Params& p, cudaStream_t stream);

}  // namespace w4afp8::grouped_gemm
