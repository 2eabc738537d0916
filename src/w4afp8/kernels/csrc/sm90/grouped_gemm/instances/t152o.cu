#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t152o(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<136, 152>, 3, 2, false, true>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
