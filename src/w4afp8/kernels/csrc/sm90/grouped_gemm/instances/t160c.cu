#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T160c : Defaults {
  using Tokens = TokenCounts<128, 144, 160>;
  static constexpr int kConsumers = 2, kStages = 3, kStageGroups = 2, kCluster = 2;
};
const char* launch_t160c(const Params& p, cudaStream_t stream) { return launch<Config<T160c>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
