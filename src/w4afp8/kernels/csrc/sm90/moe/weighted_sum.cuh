// The end of a layer: a token's rows of the second product, weighted and added.
#pragma once
#include "vector.cuh"

namespace w4afp8::moe {

constexpr int kChoicesAtOnce = 8;

__device__ __forceinline__ void add_weighted(Eight& sum, float weight, const Raw<false>& x, InType type) {
  const Eight value = widen<false>(x, type);
#pragma unroll
  for (int j = 0; j < 8; ++j) sum.v[j] += weight * value.v[j];
}

__device__ __forceinline__ uint4 scaled(const Eight& sum, float factor, InType type) {
  Eight all;
#pragma unroll
  for (int j = 0; j < 8; ++j) all.v[j] = sum.v[j] * factor;
  return to_half8(all, type);
}

// Eight columns of factor * sum over choices of weight * down[row], in 16 bits, in the order of the choices.
// `read(first, weight, x)` finds these columns of kAtOnce choices from `first`: loads that are under way together, for
// one after the other they would be all of a small layer's time.  Another rank's choice gets zeros, its weight, too.
template <int kAtOnce = kChoicesAtOnce, class Read>
__device__ __forceinline__ uint4 weighted_sum(const Combine& p, const float* weights, Read&& read) {
  Eight sum = {};
  for (int first = 0; first < p.top_k; first += kAtOnce) {
    float weight[kAtOnce];
    Raw<false> x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) weight[i] = first + i < p.top_k ? weights[first + i] : 0.0f;
    read(first, weight, x);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) add_weighted(sum, weight[i], x[i], p.type);
  }
  return scaled(sum, p.factor, p.type);
}

}  // namespace w4afp8::moe
