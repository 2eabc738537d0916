// Which row of the sorted activations a (token, choice) pair gets: rows of one expert together, experts in order, pairs
// of an expert in order of pair.  Counting alone decides it, so the result is the same on every run.
#pragma once
#include "../../ptx/mbarrier.cuh"
#include "../grouped_gemm/config.h"
#include "../overlap.cuh"
#include "../scan.cuh"
#include "pairs.cuh"

namespace w4afp8::moe {

constexpr int kRouteBlocks = 8;  // a cluster
constexpr int kRouteWarps = 32;  // of each
constexpr int kRouteExperts = grouped_gemm::kMaxExperts;

// Counts of each warp's share of the pairs by expert, of the block's, and the first row of the block's.
__host__ __device__ constexpr size_t route_shared_bytes(int experts) {
  return (kRouteWarps + 2) * (experts + 1) * sizeof(int);
}

// One cluster counts, then hands out rows: every warp owns a run of pairs, in order.  Bucket `experts` takes the pairs
// that are another rank's.
__global__ void __launch_bounds__(32 * kRouteWarps) route_kernel(Routing r) {
  extern __shared__ int shared[];
  __shared__ int warp_total[kRouteWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, thread = threadIdx.x;
  const int buckets = r.experts + 1, pairs = r.tokens * r.top_k;
  int* own = shared + warp * buckets;
  int* block = shared + kRouteWarps * buckets;
  int* first = block + buckets;
  for (int i = thread; i < kRouteWarps * buckets; i += blockDim.x) shared[i] = 0;
  wait_for_previous();
  __syncthreads();

  const int rounds = (pairs + 32 * kRouteWarps * kRouteBlocks - 1) / (32 * kRouteWarps * kRouteBlocks);
  const int begin = (blockIdx.x * kRouteWarps + warp) * rounds * 32, end = min(begin + rounds * 32, pairs);
#pragma unroll 4
  for (int pair = begin + lane; pair < end; pair += 32) atomicAdd(&own[expert_of(r, pair)], 1);
  __syncthreads();
  for (int e = thread; e < buckets; e += blockDim.x) {
    int sum = 0;
#pragma unroll 8
    for (int w = 0; w < kRouteWarps; ++w) {
      const int count = shared[w * buckets + e];
      shared[w * buckets + e] = sum;
      sum += count;
    }
    block[e] = sum;
  }
  ptx::cluster_barrier();
  int before = 0, total = 0;
  if (thread < buckets) {
#pragma unroll
    for (int b = 0; b < kRouteBlocks; ++b) {
      const int count = ptx::load_of_block(&block[thread], b);
      if (b < static_cast<int>(blockIdx.x)) before += count;
      total += count;
    }
  }
  const int sum = running_sum(total);
  if (lane == 31) warp_total[warp] = sum;
  ptx::cluster_barrier();  // nobody reads another block's counts from here on
  int row = sum - total;
  for (int w = 0; w < warp; ++w) row += warp_total[w];
  if (thread < buckets) {
    first[thread] = row + before;
    if (blockIdx.x == 0) r.offsets[thread] = row;
  }
  __syncthreads();

  for (int base = begin; base < end; base += 32) {
    const int pair = base + lane, e = pair < end ? expert_of(r, pair) : -1;
    const uint32_t same = __match_any_sync(~0u, e);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (e >= 0) r.rows[pair] = e < r.experts ? first[e] + own[e] + rank : -1;
    __syncwarp();
    if (e >= 0 && rank == 0) own[e] += __popc(same);
    __syncwarp();
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
