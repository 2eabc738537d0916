#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t40(const Params& p, cudaStream_t stream) {
  return launch<Config<4, TokenCounts<32, 40>, 4, 2>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
