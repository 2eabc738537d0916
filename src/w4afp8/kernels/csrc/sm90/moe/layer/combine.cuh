// out[t] = factor * sum over choices of weight * down[row], in the order of the choices.
#pragma once
#include "../vector.cuh"
#include "config.h"

namespace w4afp8::moe::layer {

// All consumers of all blocks; a warp takes 256 columns of a token.
__device__ __forceinline__ void combine(const Layer& p) {
  constexpr int kAtOnce = 8;  // loads under way together
  const int lane = threadIdx.x % 32, top_k = p.routing.top_k;
  const int pieces = (p.hidden + 255) / 256, units = p.routing.tokens * pieces;
  for (int unit = threadIdx.x / 32 * gridDim.x + blockIdx.x; unit < units; unit += gridDim.x * (kConsumerThreads / 32)) {
    const int token = unit / pieces, at = (unit - token * pieces) * 256 + lane * 8;
    if (at >= p.hidden) continue;
    const int* rows = p.routing.rows + token * top_k;
    const float* weights = p.weights + token * top_k;
    Eight sum = {};
    for (int first = 0; first < top_k; first += kAtOnce) {
      int row[kAtOnce];
      float weight[kAtOnce];
      Raw<false> x[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const bool there = first + i < top_k;
        row[i] = there ? __ldcg(rows + first + i) : -1;
        weight[i] = there ? weights[first + i] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const size_t from = static_cast<size_t>(row[i] < 0 ? 0 : row[i]) * p.hidden + at;
        x[i].words[0] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.down) + from));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const Eight value = widen<false>(x[i], p.type);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum.v[j] += row[i] < 0 ? 0.0f : weight[i] * value.v[j];  // another rank's: nothing
      }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sum.v[j] *= p.factor;
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + static_cast<size_t>(token) * p.hidden + at) =
        to_half8(sum, p.type);
  }
}

}  // namespace w4afp8::moe::layer
