#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T128 : Defaults {
  using Tokens = TokenCounts<96, 112, 128>;
  static constexpr int kConsumers = 2, kStages = 3, kStageGroups = 2;
};
const char* launch_t128(const Params& p, cudaStream_t stream) { return launch<Config<T128>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
