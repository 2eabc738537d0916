// The activation between the two GEMMs.
#pragma once
#include "launch.h"

namespace w4afp8::moe {

__device__ __forceinline__ float swiglu(float gate, float up, const Swiglu& p) {
  gate = fminf(gate, p.limit);
  up = fminf(fmaxf(up, -p.limit), p.limit);
  return __fdividef(gate, 1.0f + __expf(-p.alpha * gate)) * (up + p.beta);  // what follows is rounded to e4m3
}

}  // namespace w4afp8::moe
