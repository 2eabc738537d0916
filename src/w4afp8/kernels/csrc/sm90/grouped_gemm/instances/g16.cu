#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_g16(const Params& p, cudaStream_t stream) {
  return launch<Config<4, TokenCounts<8, 16>, 9, 1, true>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
