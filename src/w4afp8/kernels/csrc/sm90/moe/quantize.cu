// Activations to e4m3: to rows of their own, or to the rows of a token's pairs.
#include "../overlap.cuh"
#include "route_few.cuh"
#include "vector.cuh"

namespace w4afp8::moe {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxPieces = 4;  // pieces of eight a thread keeps in registers: rows of up to 8192 values in one read
constexpr int kEarlyTokens = 1024;  // about as many blocks as are there while rows are still found

// One block a token.  The row is read once, its largest value found, and the quantized row written wherever it is
// wanted: to its own place, or to the row of each of its pairs.
template <bool kFloat, bool kScatter, bool kRoutes>
__global__ void __launch_bounds__(kThreads) quantize_kernel(Quantize p, Routing r) {
  __shared__ int rows_here[kMaxTopK];
  extern __shared__ int ids[];
  const int token = blockIdx.x;
  const size_t begin = static_cast<size_t>(token) * p.cols;
  Raw<kFloat> kept[kMaxPieces];
  const auto read = [&] {
#pragma unroll
    for (int i = 0; i < kMaxPieces; ++i) {
      const int at = (i * kThreads + threadIdx.x) * 8;
      kept[i] = at < p.cols ? load_raw<kFloat>(p.x, begin + at) : Raw<kFloat>{};
    }
  };
  if constexpr (kScatter && !kRoutes) {
    // The kernel before finds rows, and has waited for whatever wrote x.
    const bool early = token < kEarlyTokens;
    if (early) read();
    wait_for_previous();
    int row = -1;
    if (threadIdx.x < r.top_k) row = rows_here[threadIdx.x] = r.rows[token * r.top_k + threadIdx.x];
    // All its experts are other ranks'; but the first block has a static scale to leave.
    if (!__syncthreads_or(row >= 0) && token > 0) return;
    if (!early) read();
  } else {
    wait_for_previous();
    read();
  }
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxPieces; ++i) amax = fmaxf(amax, largest(widen<kFloat>(kept[i], p.type)));
  for (int at = (kMaxPieces * kThreads + threadIdx.x) * 8; at < p.cols; at += kThreads * 8) {
    amax = fmaxf(amax, largest(widen<kFloat>(load_raw<kFloat>(p.x, begin + at), p.type)));
  }
  if constexpr (kRoutes) route_few(r, token, ids, rows_here);
  float scale;
  if (p.static_scale != nullptr) {
    scale = *p.static_scale;
  } else {
    scale = __fdiv_rn(fmaxf(block_max(amax), kSmallestAmax), kLargest);
  }
  const Divisor divide(scale);
  const auto write = [&](int at, const Eight& x) {
    const uint2 bytes = to_e4m3(x, divide);
    if constexpr (kScatter) {
      for (int i = 0; i < r.top_k; ++i) {
        const int row = rows_here[i];
        if (row >= 0) *reinterpret_cast<uint2*>(p.q + static_cast<size_t>(row) * p.cols + at) = bytes;
      }
    } else {
      *reinterpret_cast<uint2*>(p.q + begin + at) = bytes;
    }
  };
#pragma unroll
  for (int i = 0; i < kMaxPieces; ++i) {
    const int at = (i * kThreads + threadIdx.x) * 8;
    if (at < p.cols) write(at, widen<kFloat>(kept[i], p.type));
  }
  for (int at = (kMaxPieces * kThreads + threadIdx.x) * 8; at < p.cols; at += kThreads * 8) {
    write(at, widen<kFloat>(load_raw<kFloat>(p.x, begin + at), p.type));
  }
  if (p.mode == ScaleMode::kTensor) {
    if (token == 0 && threadIdx.x == 0) p.scale[0] = scale;
  } else if constexpr (kScatter) {
    if (threadIdx.x < r.top_k && rows_here[threadIdx.x] >= 0) p.scale[rows_here[threadIdx.x]] = scale;
  } else if (threadIdx.x == 0) {
    p.scale[token] = scale;
  }
}

// Sixteen threads a group of 128.
template <bool kFloat>
__global__ void __launch_bounds__(kThreads) quantize_groups_kernel(Quantize p) {
  wait_for_previous();
  const size_t group = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) / 16;
  const size_t groups = static_cast<size_t>(p.tokens) * (p.cols / 128);
  if (group >= groups) return;  // sixteen lanes leave together; the others of the warp shuffle among themselves
  const uint32_t lanes = 0xffffu << (threadIdx.x % 32 / 16 * 16);
  const size_t at = group * 128 + threadIdx.x % 16 * 8;
  const Eight x = widen<kFloat>(load_raw<kFloat>(p.x, at), p.type);
  float amax = largest(x);
#pragma unroll
  for (int step = 8; step > 0; step /= 2) amax = fmaxf(amax, __shfl_xor_sync(lanes, amax, step));
  const float scale = __fdiv_rn(fmaxf(amax, kSmallestAmax), kLargest);
  *reinterpret_cast<uint2*>(p.q + at) = to_e4m3(x, Divisor(scale));
  if (threadIdx.x % 16 == 0) p.scale[group] = scale;
}

}  // namespace

const char* quantize(const Quantize& p, cudaStream_t stream) {
  if (p.mode == ScaleMode::kGroup128) {
    const size_t threads = static_cast<size_t>(p.tokens) * (p.cols / 8);
    const unsigned blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    const auto kernel = p.type == InType::kFloat32 ? quantize_groups_kernel<true> : quantize_groups_kernel<false>;
    return message(launch_overlapped(kernel, blocks, kThreads, 0, stream, p));
  }
  const bool is_float = p.type == InType::kFloat32;
  const auto kernel = is_float ? quantize_kernel<true, false, false> : quantize_kernel<false, false, false>;
  return message(launch_overlapped(kernel, p.tokens, kThreads, 0, stream, p, Routing{}));
}

const char* scatter_quantize(const Quantize& p, const Routing& r, bool routes, cudaStream_t stream) {
  if (r.top_k > kMaxTopK) return "top_k is larger than 64";
  if (routes) {
    const size_t pairs = static_cast<size_t>(r.tokens) * r.top_k;
    const size_t ids = (pairs + 3) / 4 * 4 * sizeof(int);  // the compiler reads them by fours, to the end
    return message(launch_overlapped(quantize_kernel<false, true, true>, p.tokens, kThreads, ids, stream, p, r));
  }
  return message(launch_overlapped(quantize_kernel<false, true, false>, p.tokens, kThreads, 0, stream, p, r));
}

}  // namespace w4afp8::moe
