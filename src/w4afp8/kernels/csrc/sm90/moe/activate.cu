// Between the GEMMs: SwiGLU, and e4m3 again.
#include "../overlap.cuh"
#include "swiglu.cuh"
#include "vector.cuh"

namespace w4afp8::moe {
namespace {

constexpr int kThreads = 256;

// One warp a row.  A row of up to kPieces * 256 values is read once and stays in registers; of a longer one the rest is
// read twice.
template <int kPieces>
__global__ void __launch_bounds__(kThreads) activate_kernel(Activation p) {
  const int lane = threadIdx.x % 32, rows = *p.rows;  // the kernel before has read them, too
  wait_for_previous();
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

}  // namespace

const char* activate(const Activation& p, cudaStream_t stream) {
  const auto kernel = p.cols <= 256 ? activate_kernel<1> : p.cols <= 1024 ? activate_kernel<4> : activate_kernel<8>;
  int blocks = 0;
  const cudaError_t error = multiprocessors(&blocks);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  constexpr int kRowsAtOnce = kThreads / 32, kBlocksEach = 4;
  blocks = min(kBlocksEach * blocks, (p.max_rows + kRowsAtOnce - 1) / kRowsAtOnce);
  return message(launch_overlapped(kernel, blocks, kThreads, 0, stream, p));
}

}  // namespace w4afp8::moe
