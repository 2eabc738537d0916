#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct P80 : Defaults {
  using Tokens = TokenCounts<64, 72, 80>;
  static constexpr int kConsumers = 2, kStages = 5, kStageGroups = 2, kProducts = 2;
};
const char* launch_p80(const Params& p, cudaStream_t stream) { return launch<Config<P80>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
