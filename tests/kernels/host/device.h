// What device code takes for granted, for a program that follows one thread of it on a CPU.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#define __device__
#define __forceinline__ inline
#define __align__(n) alignas(n)
struct Index {
  int x;
};
struct int4 {
  int x, y, z, w;
};
inline Index blockIdx, gridDim, threadIdx;
using std::max;
using std::min;
inline uint64_t __shfl_up_sync(unsigned, uint64_t value, int) { return value; }
inline void __syncthreads() {}
inline void __syncwarp() {}
inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }
