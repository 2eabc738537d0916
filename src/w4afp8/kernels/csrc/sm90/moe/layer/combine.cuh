// The weighted sums of all tokens, shared by all blocks.
#pragma once
#include "../weighted_sum.cuh"
#include "config.h"
#include "signal.cuh"

namespace w4afp8::moe::layer {

// Calls use(token, column) for what of the output this warp, a consumer's, sums: 256 columns of a token at a time.
template <class Use>
__device__ __forceinline__ void share_sums(const Layer& p, Use&& use) {
  const int lane = threadIdx.x % 32, pieces = (p.hidden + 255) / 256, units = p.routing.tokens * pieces;
  for (int unit = threadIdx.x / 32 * gridDim.x + blockIdx.x; unit < units; unit += gridDim.x * (kConsumerThreads / 32)) {
    const int token = unit / pieces;
    use(token, (unit - token * pieces) * 256 + lane * 8);
  }
}

__device__ __forceinline__ Combine combination(const Layer& p, const void* down) {
  return {down, p.type, p.routing.rows, p.weights, p.routing.tokens, p.routing.top_k, p.hidden, p.factor, p.out};
}

__device__ __forceinline__ uint4* out_at(const Layer& p, int token, int at) {
  return reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + static_cast<size_t>(token) * p.hidden + at);
}

// When every block has stored its products.
__device__ __forceinline__ void combine(const Layer& p) {
  const Combine all = combination(p, p.down);
  share_sums(p, [&](int token, int at) {
    if (at >= p.hidden) return;
    const int first = token * p.routing.top_k;
    *out_at(p, token, at) = weighted_sum<true>(all, p.routing.rows + first, p.weights + first, at);
  });
}

// Few pairs: the row of each, as the quantizers find it.  A warp; `count` of the plan is its scratch.
template <int kPairs>
__device__ __forceinline__ void find_rows(const Layer& p, Plan<kPairs>& plan, int16_t* rows) {
  const int lane = threadIdx.x % 32, pairs = p.routing.tokens * p.routing.top_k, experts = p.routing.experts;
#pragma unroll 1
  for (int e = lane; e < experts; e += 32) plan.count[e] = 0;
  __syncwarp();
#pragma unroll 1
  for (int base = 0; base < pairs; base += 32) {
    const int pair = base + lane, e = pair < pairs ? plan.id[pair] : experts;
    const uint32_t same = __match_any_sync(~0u, e);
    const int before = __popc(same & ((1u << lane) - 1));
    const int row = e < experts ? plan.expert_row[e] + static_cast<int>(plan.count[e]) + before : -1;
    if (pair < pairs) rows[pair] = static_cast<int16_t>(row);
    __syncwarp();
    if (e < experts && before == 0) plan.count[e] += __popc(same);
    __syncwarp();
  }
}

// Their sums: each product is its own signal, and has one reader.
__device__ __forceinline__ void combine_few(const Layer& p, void* products, const int16_t* rows) {
  const Combine all = combination(p, products);
  share_sums(p, [&](int token, int at) {
    uint4* down = static_cast<uint4*>(products) + at / 8;
    // Opaque, else eight addresses are kept over the loop that waits: registers are short.
    const auto place = [&](int row) {
      asm volatile("" : "+r"(row));
      return down + row * (all.cols / 8);
    };
    const auto read = [&](int first, int (&row)[kChoicesAtOnce], Raw<false> (&x)[kChoicesAtOnce]) {
#pragma unroll
      for (int i = 0; i < kChoicesAtOnce; ++i) row[i] = first + i < all.top_k ? rows[token * all.top_k + first + i] : -1;
      bool there;
      do {
        there = true;
#pragma unroll
        for (int i = 0; i < kChoicesAtOnce; ++i) {
          x[i].words[0] = row[i] < 0 ? uint4{} : look_at_four(place(row[i]));
        }
#pragma unroll
        for (int i = 0; i < kChoicesAtOnce; ++i) there &= all_there(x[i].words[0]);
      } while (!__all_sync(~0u, there));
#pragma unroll
      for (int i = 0; i < kChoicesAtOnce; ++i) {
        if (row[i] >= 0) *place(row[i]) = {kAbsent, kAbsent, kAbsent, kAbsent};
      }
    };
    *out_at(p, token, at) = weighted_sum(all, p.weights + token * all.top_k, read);
  });
}

}  // namespace w4afp8::moe::layer
