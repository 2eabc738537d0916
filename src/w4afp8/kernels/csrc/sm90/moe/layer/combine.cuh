// The weighted sums of all tokens, shared by all blocks.
#pragma once
#include "../weighted_sum.cuh"
#include "config.h"
#include "signal.cuh"

namespace w4afp8::moe::layer {

// What of the output this warp, a consumer's, sums: kPieces times 256 columns of a token at a time.  hidden is a
// multiple of 256.
template <int kPieces>
struct Sums {
  int parts, units, step, unit;  // of a token; of all; from one of this warp's to the next; at hand
  __device__ __forceinline__ explicit Sums(const Layer& p)
      : parts((p.hidden / 256 + kPieces - 1) / kPieces), units(p.routing.tokens * parts),
        step(gridDim.x * (kConsumerThreads / 32)), unit(threadIdx.x / 32 * gridDim.x + blockIdx.x) {}
  __device__ __forceinline__ bool more() const { return unit < units; }
  __device__ __forceinline__ int token() const { return unit / parts; }
  __device__ __forceinline__ int column() const { return unit % parts * (kPieces * 256) + threadIdx.x % 32 * 8; }
  __device__ __forceinline__ Sums ahead(int steps) const {
    Sums then = *this;
    then.unit += steps * step;
    return then;
  }
};

__device__ __forceinline__ Combine combination(const Layer& p, const void* down) {
  return {down, p.type, p.routing.rows, p.weights, p.routing.tokens, p.routing.top_k, p.hidden, p.factor, p.out};
}

__device__ __forceinline__ uint4* out_at(const Layer& p, int token, int at) {
  return reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + static_cast<size_t>(token) * p.hidden + at);
}

// The first eight choices of a warp's next four sums, one a lane.
constexpr int kLookedUp = 4;
constexpr int kSumPieces = 2;
struct Choices {
  int row;
  float weight;
};
__device__ __forceinline__ Choices look_up(const Layer& p, const Sums<kSumPieces>& mine) {
  const int choice = threadIdx.x % kChoicesAtOnce;
  const Sums<kSumPieces> then = mine.ahead(threadIdx.x % 32 / kChoicesAtOnce);
  if (!then.more() || choice >= p.routing.top_k) return {-1, 0.0f};
  const int pair = then.token() * p.routing.top_k + choice;
  return {__ldcg(p.routing.rows + pair), p.weights[pair]};
}

// When every block has stored its products.  `held`: looked up before.
__device__ __forceinline__ void combine(const Layer& p, Sums<kSumPieces> mine, Choices held) {
  constexpr int kAtOnce = 4;  // choices that are here
  for (int k = 0; mine.more(); mine = mine.ahead(1), ++k) {
    if (k == kLookedUp) k = 0, held = look_up(p, mine);
    const int token = mine.token(), at = mine.column(), pieces = min(kSumPieces, (p.hidden - at + 255) / 256);
    const auto load = [&](int row, int piece) {
      const size_t from = static_cast<size_t>(row) * p.hidden + at + piece * 256;
      const uint16_t* down = static_cast<const uint16_t*>(p.down) + from;
      return piece < pieces ? Raw<false>{{__ldcg(reinterpret_cast<const uint4*>(down))}} : Raw<false>{};
    };
    Eight sum[kSumPieces] = {};
    // Those that are here, in their order: lanes of `held`.
    uint32_t here = __ballot_sync(~0u, held.row >= 0) & 0xffu << k * kChoicesAtOnce;
    while (here != 0) {
      Raw<false> x[kAtOnce][kSumPieces];
      float weight[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int lane = __ffs(here) - 1;  // -1 when there are no more
        here &= here - 1;
        const int row = __shfl_sync(~0u, held.row, lane);
        weight[i] = lane < 0 ? 0.0f : __shfl_sync(~0u, held.weight, lane);
#pragma unroll
        for (int j = 0; j < kSumPieces; ++j) x[i][j] = lane < 0 ? Raw<false>{} : load(row, j);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < kSumPieces; ++j) add_weighted(sum[j], weight[i], x[i][j], p.type);
      }
    }
#pragma unroll 1
    for (int choice = kChoicesAtOnce; choice < p.routing.top_k; ++choice) {
      const int pair = token * p.routing.top_k + choice, row = __ldcg(p.routing.rows + pair);
#pragma unroll
      for (int j = 0; j < kSumPieces; ++j) {
        if (row >= 0) add_weighted(sum[j], p.weights[pair], load(row, j), p.type);
      }
    }
#pragma unroll
    for (int j = 0; j < kSumPieces; ++j) {
      if (j < pieces) *out_at(p, token, at + j * 256) = scaled(sum[j], p.factor, p.type);
    }
  }
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
  for (Sums<1> mine(p); mine.more(); mine = mine.ahead(1)) {
    const int token = mine.token(), at = mine.column();
    uint4* down = static_cast<uint4*>(products) + at / 8;
    // Opaque, else eight addresses are kept over the loop that waits: registers are short.
    const auto place = [&](int row) {
      asm volatile("" : "+r"(row));
      return down + row * (all.cols / 8);
    };
    const auto read = [&](int first, float (&weight)[kChoicesAtOnce], Raw<false> (&x)[kChoicesAtOnce]) {
      int row[kChoicesAtOnce];
#pragma unroll
      for (int i = 0; i < kChoicesAtOnce; ++i) {
        row[i] = first + i < all.top_k ? rows[token * all.top_k + first + i] : -1;
      }
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
        if (row[i] < 0) weight[i] = 0.0f;
        if (row[i] >= 0) *place(row[i]) = {kAbsent, kAbsent, kAbsent, kAbsent};
      }
    };
    *out_at(p, token, at) = weighted_sum(all, p.weights + token * all.top_k, read);
  }
}

}  // namespace w4afp8::moe::layer
