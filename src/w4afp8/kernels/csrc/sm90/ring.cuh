// Where whoever fills or empties a ring of slots in shared memory stands in it.
#pragma once
#include <cstdint>

namespace w4afp8 {

template <int kSlots>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;  // parity of the round, as mbarriers count
  __device__ __forceinline__ void advance() {
    if (++stage == kSlots) stage = 0, phase ^= 1;
  }
};

}  // namespace w4afp8
