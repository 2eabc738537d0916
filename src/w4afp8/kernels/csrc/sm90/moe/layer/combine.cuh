// The weighted sums of all tokens, shared by all blocks.
#pragma once
#include "../weighted_sum.cuh"
#include "config.h"

namespace w4afp8::moe::layer {

// All consumers of all blocks; a warp takes 256 columns of a token.
__device__ __forceinline__ void combine(const Layer& p) {
  const int lane = threadIdx.x % 32, top_k = p.routing.top_k;
  const int pieces = (p.hidden + 255) / 256, units = p.routing.tokens * pieces;
  const Combine all{p.down, p.type, p.routing.rows, p.weights, p.routing.tokens, top_k, p.hidden, p.factor, p.out};
  for (int unit = threadIdx.x / 32 * gridDim.x + blockIdx.x; unit < units; unit += gridDim.x * (kConsumerThreads / 32)) {
    const int token = unit / pieces, at = (unit - token * pieces) * 256 + lane * 8;
    if (at >= p.hidden) continue;
    const int* rows = p.routing.rows + token * top_k;
    const float* weights = p.weights + token * top_k;
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + static_cast<size_t>(token) * p.hidden + at) =
        weighted_sum<true>(all, rows, weights, at);
  }
}

}  // namespace w4afp8::moe::layer
