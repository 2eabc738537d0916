// The door to the one-launch layer kernels: a kernel by name, a layer, a stream.  Returns null, or what went wrong.
#pragma once
#include <cuda_runtime_api.h>

#include "config.h"

namespace w4afp8::moe::layer {

const char* run(const char* name, const Layer& p, cudaStream_t stream);

}  // namespace w4afp8::moe::layer
