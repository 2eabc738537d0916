// After the GEMMs: a token's rows, weighted and added.
#include "../overlap.cuh"
#include "weighted_sum.cuh"

namespace w4afp8::moe {
namespace {

constexpr int kThreads = 256;

// out[t] = factor * sum over choices of weight * down[row].  A block sums `pieces` times 2048 columns of a token, and
// looks up its choices once: those that are here.  Rows and weights are older than the kernel before, which writes
// `down` and has waited for the one that read its rows: they are looked up while it runs.
__global__ void __launch_bounds__(kThreads) combine_kernel(Combine p, int pieces) {
  __shared__ int rows[kMaxTopK];
  __shared__ float weights[kMaxTopK];
  __shared__ int here;
  const int token = blockIdx.x, lane = threadIdx.x;
  if (lane < 32) {
    int count = 0;
#pragma unroll 1
    for (int first = 0; first < p.top_k; first += 32) {
      const size_t pair = static_cast<size_t>(token) * p.top_k + first + lane;
      const int row = first + lane < p.top_k ? p.rows[pair] : -1;
      const uint32_t some = __ballot_sync(~0u, row >= 0);
      const int place = count + __popc(some & ((1u << lane) - 1));
      if (row >= 0) rows[place] = row, weights[place] = p.weights[pair];
      count += __popc(some);
    }
    if (lane == 0) here = count;
  }
  wait_for_previous();
  __syncthreads();
  p.top_k = here;
  uint16_t* out = static_cast<uint16_t*>(p.out) + static_cast<size_t>(token) * p.cols;
  for (int piece = blockIdx.y * pieces, last = piece + pieces; piece < last; ++piece) {
    const int at = (piece * kThreads + threadIdx.x) * 8;
    if (at >= p.cols) return;
    const auto sum = [&]<int kAtOnce>() {
      return weighted_sum<kAtOnce>(p, weights, [&](int first, float (&)[kAtOnce], Raw<false> (&x)[kAtOnce]) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const size_t from = first + i < p.top_k ? static_cast<size_t>(rows[first + i]) * p.cols + at : 0;
          x[i] = first + i < p.top_k ? load_raw<false>(p.down, from) : Raw<false>{};
        }
      });
    };
    *reinterpret_cast<uint4*>(out + at) =
        p.top_k <= 2 ? sum.template operator()<2>() : sum.template operator()<kChoicesAtOnce>();
  }
}

}  // namespace

const char* combine(const Combine& p, cudaStream_t stream) {
  if (p.top_k > kMaxTopK) return "top_k is larger than 64";
  // Where blocks are many, each takes a whole token: one wait for the rows of its choices, then load after load.
  const int all = (p.cols / 8 + kThreads - 1) / kThreads, pieces = p.tokens >= 512 ? all : 1;
  return message(launch_overlapped(combine_kernel, dim3(p.tokens, all / pieces), kThreads, 0, stream, p, pieces));
}

}  // namespace w4afp8::moe
