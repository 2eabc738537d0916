#include "../overlap.cuh"
#include "route.cuh"
#include "swiglu.cuh"
#include "vector.cuh"
#include "weighted_sum.cuh"

namespace w4afp8::moe {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxPieces = 4;  // pieces of eight a thread keeps in registers: rows of up to 8192 values in one read

const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// One block a token.  The row is read once, its largest value found, and the quantized row written wherever it is
// wanted: to its own place, or to the row of each of its pairs.
template <bool kFloat, bool kScatter, bool kRoutes>
__global__ void __launch_bounds__(kThreads) quantize_kernel(Quantize p, Routing r) {
  __shared__ int rows_here[kMaxTopK];
  extern __shared__ int ids[];
  wait_for_previous();
  const int token = blockIdx.x;
  if constexpr (kScatter && !kRoutes) {
    int row = -1;
    if (threadIdx.x < r.top_k) row = rows_here[threadIdx.x] = r.rows[token * r.top_k + threadIdx.x];
    // All its experts are other ranks'; but the first block has a static scale to leave.
    if (!__syncthreads_or(row >= 0) && token > 0) return;
  }
  const size_t begin = static_cast<size_t>(token) * p.cols;
  Raw<kFloat> kept[kMaxPieces];
#pragma unroll
  for (int i = 0; i < kMaxPieces; ++i) {
    const int at = (i * kThreads + threadIdx.x) * 8;
    kept[i] = at < p.cols ? load_raw<kFloat>(p.x, begin + at) : Raw<kFloat>{};
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

// One warp a row.  A row of up to kPieces * 256 values is read once and stays in registers; of a longer one the rest is
// read twice.
template <int kPieces>
__global__ void __launch_bounds__(kThreads) activate_kernel(Activation p) {
  wait_for_previous();
  const int lane = threadIdx.x % 32, rows = *p.rows;
  const auto product = [&](const Raw<false>& raw_gate, const Raw<false>& raw_up) {
    const Eight gate = widen<false>(raw_gate, p.type), up = widen<false>(raw_up, p.type);
    Eight h;
#pragma unroll
    for (int i = 0; i < 8; ++i) h.v[i] = swiglu(gate.v[i], up.v[i], p.swiglu);
    return h;
  };
  for (int row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32; row < rows; row += gridDim.x * (kThreads / 32)) {
    const size_t gate = static_cast<size_t>(row) * 2 * p.cols, up = gate + p.cols;
    const auto more = [&](auto&& use) {
      for (int at = (kPieces * 32 + lane) * 8; at < p.cols; at += 32 * 8) {
        use(at, product(load_raw<false>(p.gate_up, gate + at), load_raw<false>(p.gate_up, up + at)));
      }
    };
    Raw<false> raw_gate[kPieces], raw_up[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int at = (i * 32 + lane) * 8;
      raw_gate[i] = at < p.cols ? load_raw<false>(p.gate_up, gate + at) : Raw<false>{};
      raw_up[i] = at < p.cols ? load_raw<false>(p.gate_up, up + at) : Raw<false>{};
    }
    Eight kept[kPieces];
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      kept[i] = product(raw_gate[i], raw_up[i]);
      if ((i * 32 + lane) * 8 < p.cols) amax = fmaxf(amax, largest(kept[i]));
    }
    more([&](int, const Eight& h) { amax = fmaxf(amax, largest(h)); });
    const float scale = p.static_scale != nullptr ? *p.static_scale
                                                  : __fdiv_rn(fmaxf(warp_max(amax), kSmallestAmax), kLargest);
    const Reciprocal inverse(scale);
    const auto write = [&](int at, const Eight& h) {
      *reinterpret_cast<uint2*>(p.q + static_cast<size_t>(row) * p.cols + at) = to_e4m3(h, inverse);
    };
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int at = (i * 32 + lane) * 8;
      if (at < p.cols) write(at, kept[i]);
    }
    more(write);
    if (lane == 0 && (p.static_scale == nullptr || row == 0)) p.scale[row] = scale;
  }
}

// out[t] = factor * sum over choices of weight * down[row].  A block sums `pieces` times 2048 columns of a token, and
// looks up its choices once: those that are here.
__global__ void __launch_bounds__(kThreads) combine_kernel(Combine p, int pieces) {
  __shared__ int rows[kMaxTopK];
  __shared__ float weights[kMaxTopK];
  __shared__ int here;
  const int token = blockIdx.x, lane = threadIdx.x;
  wait_for_previous();
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
  __syncthreads();
  p.top_k = here;
  uint16_t* out = static_cast<uint16_t*>(p.out) + static_cast<size_t>(token) * p.cols;
  for (int piece = blockIdx.y * pieces, last = piece + pieces; piece < last; ++piece) {
    const int at = (piece * kThreads + threadIdx.x) * 8;
    if (at >= p.cols) return;
    *reinterpret_cast<uint4*>(out + at) = p.top_k <= 2 ? weighted_sum<false, 2>(p, rows, weights, at)
                                                       : weighted_sum<false>(p, rows, weights, at);
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
    const size_t ids = static_cast<size_t>(r.tokens) * r.top_k * sizeof(int);
    return message(launch_overlapped(quantize_kernel<false, true, true>, p.tokens, kThreads, ids, stream, p, r));
  }
  return message(launch_overlapped(quantize_kernel<false, true, false>, p.tokens, kThreads, 0, stream, p, r));
}

const char* activate(const Activation& p, cudaStream_t stream) {
  const auto kernel = p.cols <= 256 ? activate_kernel<1> : p.cols <= 1024 ? activate_kernel<4> : activate_kernel<8>;
  int blocks = 0;
  const cudaError_t error = multiprocessors(&blocks);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  constexpr int kRowsAtOnce = kThreads / 32, kBlocksEach = 4;
  blocks = min(kBlocksEach * blocks, (p.max_rows + kRowsAtOnce - 1) / kRowsAtOnce);
  return message(launch_overlapped(kernel, blocks, kThreads, 0, stream, p));
}

const char* combine(const Combine& p, cudaStream_t stream) {
  if (p.top_k > kMaxTopK) return "top_k is larger than 64";
  // Where blocks are many, each takes a whole token: one wait for the rows of its choices, then load after load.
  const int all = (p.cols / 8 + kThreads - 1) / kThreads, pieces = p.tokens >= 512 ? all : 1;
  return message(launch_overlapped(combine_kernel, dim3(p.tokens, all / pieces), kThreads, 0, stream, p, pieces));
}

}  // namespace w4afp8::moe
