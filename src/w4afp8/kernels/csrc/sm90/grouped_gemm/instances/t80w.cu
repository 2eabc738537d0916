#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t80w(const Params& p, cudaStream_t stream) {
  return launch<Config<3, TokenCounts<72, 80>, 4, 2>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
