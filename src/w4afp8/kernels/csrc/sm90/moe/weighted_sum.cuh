// The end of a layer: a token's rows of the second product, weighted and added.
#pragma once
#include "vector.cuh"

namespace w4afp8::moe {

// Eight columns from `at` of factor * sum over choices of weight * down[row], in 16 bits, in the order of the choices.
// The loads of kAtOnce choices are under way together: one after the other they would be all of a small layer's time.
// kPastL1: rows and down were written in this launch, by other multiprocessors.
template <bool kPastL1>
__device__ __forceinline__ uint4 weighted_sum(const Combine& p, const int* rows, const float* weights, int at) {
  constexpr int kAtOnce = 8;
  Eight sum = {};
  for (int first = 0; first < p.top_k; first += kAtOnce) {
    int row[kAtOnce];
    float weight[kAtOnce];
    Raw<false> x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool there = first + i < p.top_k;
      row[i] = !there ? -1 : kPastL1 ? __ldcg(rows + first + i) : rows[first + i];
      weight[i] = there ? weights[first + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const size_t from = static_cast<size_t>(row[i] < 0 ? 0 : row[i]) * p.cols + at;
      if constexpr (kPastL1) {
        x[i].words[0] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.down) + from));
      } else {
        x[i] = load_raw<false>(p.down, from);
      }
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
  return to_half8(sum, p.type);
}

}  // namespace w4afp8::moe
