// What a kernel is given.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "../ring.cuh"
#include "config.h"
#include "params.h"

namespace w4afp8::grouped_gemm {

struct Arguments {
  CUtensorMap x_map[kMostCounts];  // [groups][tokens][128], with a box for each token count
  CUtensorMap codes_map;           // [experts][row blocks][32 * groups][128]
  CUtensorMap scale_map;           // [experts][row blocks][64 * groups]
  CUtensorMap x_scale_map;         // [tokens], used when the scale is per token
  CUtensorMap out_map;             // [tokens][rows] of large tiles' 16-bit results, a box of eight tokens and 64 rows
  CUtensorMap out_wide_map;        // the same, a box of kStoreTokens
  Params p;
  // Sums of tiles that are split along K, [blocks][consumers][tokens / 2 * 128]; absent words between launches, or, of
  // large tiles, flags [blocks][consumers] that are zero between launches.
  float* partial;
  uint32_t* ready;
  // Do consumers fetch a tile's first groups while they multiply the last of the tile before?  It saves the start of
  // every tile; but where memory is slower than multiplying, waiting for them keeps a finished tile from its end.
  bool looks_ahead;
  uint32_t minus_one;  // for `unpack`
  uint32_t upper_bytes, lower_bytes;  // which bytes of two words of scales are the upper row's float, and the lower's
};

}  // namespace w4afp8::grouped_gemm
