// The experts' offsets as a block sees them: each thread those of the experts that it counts.
//
// They may be read before the kernel that writes them has ended, to plan with what is most likely there already: they
// are asked for in L2, where writes arrive, and must be compared with what stands there afterwards.
#pragma once
#include "config.h"
#include "params.h"

namespace w4afp8::grouped_gemm {

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ int offset_at(const Params& p, int e) {
  if (p.offsets == nullptr) return e == 0 ? 0 : p.tokens;
  long long v;
  if (p.offsets_64) {
    asm volatile("ld.relaxed.gpu.global.s64 %0, [%1];" : "=l"(v) : "l"(static_cast<const long long*>(p.offsets) + e));
  } else {
    int word;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(word) : "l"(static_cast<const int*>(p.offsets) + e));
    v = word;
  }
  return static_cast<int>(v < 0 ? 0 : v > p.tokens ? p.tokens : v);  // a lying offset must not leave the arrays
}

template <int kThreads>
struct Offsets {
  static constexpr int kEach = (kMaxExperts + kThreads - 1) / kThreads;
  int first[kEach], rows[kEach];  // of expert i * kThreads + threadIdx.x

  __device__ explicit Offsets(const Params& p) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int e = i * kThreads + threadIdx.x;
      first[i] = rows[i] = 0;
      if (e >= p.experts) continue;
      const int end = offset_at(p, e + 1);
      first[i] = offset_at(p, e);
      rows[i] = max(end - first[i], 0);
    }
  }

  __device__ bool differ(const Offsets& other) const {
    bool found = false;
#pragma unroll
    for (int i = 0; i < kEach; ++i) found |= first[i] != other.first[i] || rows[i] != other.rows[i];
    return found;
  }
};

}  // namespace w4afp8::grouped_gemm
