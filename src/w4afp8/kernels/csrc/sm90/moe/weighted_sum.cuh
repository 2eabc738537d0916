// The end of a layer: a token's rows of the second product, weighted and added.
#pragma once
#include "vector.cuh"

namespace w4afp8::moe {

// Eight columns from `at` of factor * sum over choices of weight * down[row], in 16 bits, in the order of the choices.
// `read(first, row, x)` finds the rows of kAtOnce choices from `first`, -1 for none, and these columns of theirs: loads
// that are under way together, for one after the other they would be all of a small layer's time.
constexpr int kChoicesAtOnce = 8;
template <int kAtOnce = kChoicesAtOnce, class Read>
__device__ __forceinline__ uint4 weighted_sum(const Combine& p, const float* weights, Read&& read) {
  Eight sum = {};
  for (int first = 0; first < p.top_k; first += kAtOnce) {
    int row[kAtOnce];
    float weight[kAtOnce];
    Raw<false> x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) weight[i] = first + i < p.top_k ? weights[first + i] : 0.0f;
    read(first, row, x);
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

// Rows and their values as earlier kernels left them, or (kPastL1) other multiprocessors in this launch.
template <bool kPastL1, int kAtOnce = kChoicesAtOnce>
__device__ __forceinline__ uint4 weighted_sum(const Combine& p, const int* rows, const float* weights, int at) {
  return weighted_sum<kAtOnce>(p, weights, [&](int first, int (&row)[kAtOnce], Raw<false> (&x)[kAtOnce]) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      row[i] = first + i >= p.top_k ? -1 : kPastL1 ? __ldcg(rows + first + i) : rows[first + i];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const size_t from = static_cast<size_t>(row[i]) * p.cols + at;
      if (row[i] < 0) {
        x[i] = {};
      } else if constexpr (kPastL1) {
        x[i].words[0] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.down) + from));
      } else {
        x[i] = load_raw<false>(p.down, from);
      }
    }
  });
}

}  // namespace w4afp8::moe
