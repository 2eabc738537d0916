#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_f64(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<32, 64>, 8, 1, false, 1, Scales::kAny>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
