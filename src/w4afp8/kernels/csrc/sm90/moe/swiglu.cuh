// The activation between the two GEMMs.
#pragma once
#include "launch.h"

namespace w4afp8::moe {

__device__ __forceinline__ float swiglu(float gate, float up, const Swiglu& p) {
  gate = fminf(gate, p.limit);
  up = fminf(fmaxf(up, -p.limit), p.limit);
  return gate / (1.0f + expf(-p.alpha * gate)) * (up + p.beta);
}

}  // namespace w4afp8::moe
