#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T64 : Defaults {
  using Tokens = TokenCounts<48, 56, 64>;
  static constexpr int kConsumers = 3, kStages = 4, kStageGroups = 2;
};
const char* launch_t64(const Params& p, cudaStream_t stream) { return launch<Config<T64>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
