// Words in global memory by which blocks tell each other what is done.
#pragma once
#include <cstdint>

namespace w4afp8::moe::layer {

__device__ __forceinline__ uint32_t acquire(const uint32_t* word) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(word) : "memory");
  return v;
}
__device__ __forceinline__ void await(const uint32_t* word, uint32_t value) {
  while (acquire(word) < value) {
  }
}
__device__ __forceinline__ void release_add(uint32_t* word) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
}
// How many had added before.
__device__ __forceinline__ uint32_t exchange_add(uint32_t* word) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(word) : "memory");
  return before;
}
// Between an acquire and the copy engine's reads of what others had stored.  The stores of a whole block are released
// by one thread after a barrier: a fence in every thread would wait for the weights under way.
__device__ __forceinline__ void expect_from_stores() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

}  // namespace w4afp8::moe::layer
