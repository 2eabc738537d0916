#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t160c(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<128, 144, 160>, 3, 2, false, 2>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
