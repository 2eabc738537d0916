#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_g64(const Params& p, cudaStream_t stream) {
  return launch<Config<3, TokenCounts<32, 64>, 6, 1, true>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
