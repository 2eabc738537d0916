#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_f152(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<96, 120, 152>, 3, 2, false, 1, Scales::kAny>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
