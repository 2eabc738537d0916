#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T152c : Defaults {
  using Tokens = TokenCounts<120, 136, 152>;
  static constexpr int kConsumers = 2, kStages = 3, kStageGroups = 2, kCluster = 2;
};
const char* launch_t152c(const Params& p, cudaStream_t stream) { return launch<Config<T152c>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
