#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t64n(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<32, 48, 64>, 10, 1>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
