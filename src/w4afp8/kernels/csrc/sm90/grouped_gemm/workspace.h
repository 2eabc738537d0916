// Scratch memory for partial sums, its flags zero between launches because every owner clears what it read; the data
// begin as words of ones, which a user may likewise keep between launches.
//
// One per device and stream, so launches that may overlap never share it; one per graph for captured launches.  They
// are never freed: a captured graph keeps the address.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace w4afp8 {

// Each has its own, because each leaves words its own way.
enum class WorkspaceUser : int { kSmallTiles, kLargeTiles, kLayer, kFewPairs };

// Returns null, or what went wrong.
const char* workspace(cudaStream_t stream, size_t flag_bytes, size_t data_bytes, uint32_t** flags, float** data,
                      WorkspaceUser user);

}  // namespace w4afp8
