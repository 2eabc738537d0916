// What device code takes for granted, for programs that follow it on a CPU.  How its threads meet is in alone.h, for one
// thread, or in block.h, for all threads of a block.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#define __device__
#define __forceinline__ inline
#define __align__(n) alignas(n)
struct Index {
  int x;
};
struct int4 {
  int x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline Index blockIdx, gridDim, threadIdx;
using std::max;
using std::min;
inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }

[[noreturn]] inline void fail(const std::string& what) {
  std::printf("wrong: %s\n", what.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}
