// Running sums over the lanes of a warp.
#pragma once

namespace w4afp8 {

// The sum of this lane's value and those of all lanes before it.
template <class T>
__device__ __forceinline__ T running_sum(T sum) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T left = __shfl_up_sync(~0u, sum, step);
    if (static_cast<int>(threadIdx.x % 32) >= step) sum += left;
  }
  return sum;
}

}  // namespace w4afp8
