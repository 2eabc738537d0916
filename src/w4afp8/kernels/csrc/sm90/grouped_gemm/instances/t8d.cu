#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t8d(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<8>, 5, 2, false, 1, Scales::kBFloat16, 2, 2>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
