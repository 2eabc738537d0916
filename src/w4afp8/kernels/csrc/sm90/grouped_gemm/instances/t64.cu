#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t64(const Params& p, cudaStream_t stream) {
  return launch<Config<4, TokenCounts<16, 32, 48, 64>, 6, 1>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
