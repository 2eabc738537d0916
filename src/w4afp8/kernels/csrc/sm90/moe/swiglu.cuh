// The activation between the two GEMMs.
#pragma once
#include "launch.h"

namespace w4afp8::moe {

__device__ __forceinline__ float swiglu(float gate, float up, const Swiglu& p) {
  gate = gate > p.limit ? p.limit : gate;  // not fminf, which makes a number of a NaN
  up = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
  return __fdividef(gate, 1.0f + __expf(-p.alpha * gate)) * (up + p.beta);  // what follows is rounded to e4m3
}

}  // namespace w4afp8::moe
