#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_g128(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<96, 128>, 7, 1, true>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
