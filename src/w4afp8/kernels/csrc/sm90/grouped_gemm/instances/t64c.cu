#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t64c(const Params& p, cudaStream_t stream) {
  return launch<Config<3, TokenCounts<48, 56, 64>, 4, 2, false, 2>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
