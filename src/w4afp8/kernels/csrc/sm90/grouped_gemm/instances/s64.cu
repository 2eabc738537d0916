#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_s64(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<32, 64>, 8, 1>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
