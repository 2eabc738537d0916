#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct P48 : Defaults {
  using Tokens = TokenCounts<32, 40, 48>;
  static constexpr int kConsumers = 2, kStages = 6, kStageGroups = 2, kProducts = 2;
};
const char* launch_p48(const Params& p, cudaStream_t stream) { return launch<Config<P48>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
