#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
const char* launch_t96(const Params& p, cudaStream_t stream) {
  return launch<Config<2, TokenCounts<64, 80, 96>, 4, 2>>(p, stream);
}
}  // namespace w4afp8::grouped_gemm
