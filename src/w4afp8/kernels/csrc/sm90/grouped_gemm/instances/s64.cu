#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct S64 : Defaults {
  using Tokens = TokenCounts<32, 64>;
  static constexpr int kConsumers = 2, kStages = 8, kStageGroups = 1;
};
const char* launch_s64(const Params& p, cudaStream_t stream) { return launch<Config<S64>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
