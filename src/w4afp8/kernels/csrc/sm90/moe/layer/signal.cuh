// Words in global memory by which blocks tell each other what is done.
#pragma once
#include <cstdint>

#include "../../own_signal.cuh"

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
__device__ __forceinline__ void release_add(uint32_t* word, uint32_t value = 1) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ void add(uint32_t* word) {  // orders nothing
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
}

// More words that are their own signal (own_signal.cuh).
__device__ __forceinline__ uint32_t never_absent(float v) {
  return __float_as_uint(v) == kAbsent ? 0x7fffffffu : __float_as_uint(v);
}
__device__ __forceinline__ void leave_words(void* place, int4 v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(place), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void leave_word(uint32_t* place, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(v) : "memory");
}
__device__ __forceinline__ void leave_two(uint32_t* place, uint2 v) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(place), "r"(v.x), "r"(v.y) : "memory");
}
__device__ __forceinline__ uint32_t look_at(const uint32_t* place) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(place) : "memory");
  return v;
}

// Between an acquire and the copy engine's reads of what others had stored.  The stores of a whole block are released
// by one thread after a barrier: a fence in every thread would wait for the weights under way.
__device__ __forceinline__ void expect_from_stores() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

}  // namespace w4afp8::moe::layer
