#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T32w : Defaults {
  using Tokens = TokenCounts<16, 32>;
  static constexpr int kConsumers = 3, kStages = 5, kStageGroups = 2;
};
const char* launch_t32w(const Params& p, cudaStream_t stream) { return launch<Config<T32w>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
