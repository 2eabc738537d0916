// Values that are their own signal: memory between launches is full of a word that no value has, a reader asks until it
// finds another, and puts the word back.  No fence, which would wait for all copies under way, and nobody waits but the
// reader.
#pragma once
#include <cstdint>

namespace w4afp8 {

constexpr uint32_t kAbsent = 0xffffffffu;  // a NaN, and not the one that arithmetic makes (0x7fffffff)

// Four sums.  What comes out of an addition is never absent.
__device__ __forceinline__ void leave_four(uint4* place, const float* v) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(place), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}
__device__ __forceinline__ uint4 look_at_four(const uint4* place) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(place)
               : "memory");
  return v;
}
__device__ __forceinline__ bool all_there(uint4 v) {
  return v.x != kAbsent && v.y != kAbsent && v.z != kAbsent && v.w != kAbsent;
}

}  // namespace w4afp8
