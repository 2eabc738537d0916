// A thread that meets no other.
#pragma once
#include "device.h"

inline uint64_t __shfl_up_sync(unsigned, uint64_t value, int) { return value; }
inline void __syncthreads() {}
inline void __syncwarp() {}
