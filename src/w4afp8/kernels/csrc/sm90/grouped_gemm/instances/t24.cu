#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T24 : Defaults {
  using Tokens = TokenCounts<16, 24>;
  static constexpr int kConsumers = 4, kStages = 5, kStageGroups = 2;
};
const char* launch_t24(const Params& p, cudaStream_t stream) { return launch<Config<T24>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
