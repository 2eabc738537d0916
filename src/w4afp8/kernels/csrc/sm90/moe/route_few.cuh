// What route.cu does, for few pairs: beside other work, in a kernel that needs the rows.
#pragma once
#include "pairs.cuh"

namespace w4afp8::moe {

// Block `token` of `tokens`: rows of this token's pairs into `rows_here`, and this block's part of the offsets.  `ids` is
// shared memory for all pairs.  Ends with a barrier.
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
