#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_f16(const Params& p, cudaStream_t stream) {
  return launch<Config<4, TokenCounts<8, 16>, 5, 2, false, 1, Scales::kAny>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
