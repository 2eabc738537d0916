// Which row of the sorted activations a (token, choice) pair gets: rows of one expert together, experts in order, pairs
// of an expert in order of pair.  Counting alone decides it, so the result is the same on every run.
#pragma once
#include "../overlap.cuh"
#include "../scan.cuh"
#include "pairs.cuh"

namespace w4afp8::moe {

// One block an expert: count the pairs before its rows, then hand out its rows in order.
__global__ void __launch_bounds__(256) route_kernel(Routing r) {
  constexpr int kEach = 8;
  __shared__ int before_each[8], own_each[8];
  wait_for_previous();
  const int e = blockIdx.x, pairs = r.tokens * r.top_k, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0;
  for (int p = threadIdx.x; p < pairs; p += 256) before += expert_of(r, p) < e;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) before += __shfl_xor_sync(~0u, before, step);
  if (lane == 0) before_each[warp] = before;
  __syncthreads();
  int row = 0;
  for (int w = 0; w < 8; ++w) row += before_each[w];
  if (threadIdx.x == 0) r.offsets[e] = row;
  for (int base = 0; base < pairs; base += 256 * kEach) {
    const int first = base + threadIdx.x * kEach;
    int own = 0;
    int mine[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      mine[i] = first + i < pairs ? expert_of(r, first + i) : r.experts;
      own += mine[i] == e;
      if (e == r.experts && first + i < pairs && mine[i] == e) r.rows[first + i] = -1;
    }
    const int sum = running_sum(own);
    __syncthreads();
    if (lane == 31) own_each[warp] = sum;
    __syncthreads();
    int at = row + sum - own;
    for (int w = 0; w < 8; ++w) {
      if (w < warp) at += own_each[w];
      row += own_each[w];
    }
    if (e < r.experts) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (mine[i] == e) r.rows[first + i] = at++;
      }
    }
  }
}

// The same for few pairs, done beside other work by block `token` of `tokens`: rows of this token's pairs into
// `rows_here`, and this block's part of the offsets.  `ids` is shared memory for all pairs.  Ends with a barrier.
__device__ __forceinline__ void route_few(const Routing& r, int token, int* ids, int* rows_here) {
  const int pairs = r.tokens * r.top_k, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int p = threadIdx.x; p < pairs; p += blockDim.x) ids[p] = expert_of(r, p);
  __syncthreads();
  for (int choice = warp; choice < r.top_k; choice += blockDim.x / 32) {
    const int pair = token * r.top_k + choice, e = ids[pair];
    int row = 0;
    for (int p = lane; p < pairs; p += 32) row += ids[p] < e || (ids[p] == e && p < pair);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) row += __shfl_xor_sync(~0u, row, step);
    if (e == r.experts) row = -1;
    if (lane == 0) rows_here[choice] = r.rows[pair] = row;
  }
  if (pairs <= 64) {  // a thread an expert
    for (int e = token + r.tokens * threadIdx.x; e <= r.experts; e += r.tokens * blockDim.x) {
      int before = 0;
      for (int p = 0; p < pairs; ++p) before += ids[p] < e;
      r.offsets[e] = before;
    }
  } else {  // a warp an expert
    for (int e = token + r.tokens * warp; e <= r.experts; e += r.tokens * (blockDim.x / 32)) {
      int before = 0;
      for (int p = lane; p < pairs; p += 32) before += ids[p] < e;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) before += __shfl_xor_sync(~0u, before, step);
      if (lane == 0) r.offsets[e] = before;
    }
  }
  __syncthreads();
}

}  // namespace w4afp8::moe
