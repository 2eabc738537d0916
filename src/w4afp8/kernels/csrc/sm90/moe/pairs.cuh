// Which expert a (token, choice) pair goes to.
#pragma once
#include "launch.h"

namespace w4afp8::moe {

// The local expert of a pair; `experts` when it is another rank's or none.
__device__ __forceinline__ int expert_of(const Routing& r, int pair) {
  const long long id = r.ids_64 ? static_cast<const long long*>(r.ids)[pair] : static_cast<const int*>(r.ids)[pair];
  const long long local = id - r.expert_begin;
  return local >= 0 && local < r.experts ? static_cast<int>(local) : r.experts;
}

}  // namespace w4afp8::moe
