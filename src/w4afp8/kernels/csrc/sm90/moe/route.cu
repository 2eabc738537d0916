// Which row of the sorted activations a (token, choice) pair gets: rows of one expert together, experts in order, pairs
// of an expert in order of pair.  Counting alone decides it, so the result is the same on every run.
#include "../../ptx/mbarrier.cuh"
#include "../grouped_gemm/config.h"
#include "../overlap.cuh"
#include "../scan.cuh"
#include "pairs.cuh"

namespace w4afp8::moe {
namespace {

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

}  // namespace

const char* route(const Routing& r, cudaStream_t stream) {
  if (r.experts > kRouteExperts) return "more than 512 experts";
  // The limit is the function's, whoever launches it beside: the same for everybody.
  const cudaError_t error = cudaFuncSetAttribute(route_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 route_shared_bytes(kRouteExperts));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return message(launch_overlapped<Residence::kAny, kRouteBlocks>(route_kernel, kRouteBlocks, 32 * kRouteWarps,
                                                                  route_shared_bytes(r.experts), stream, r));
}

}  // namespace w4afp8::moe
