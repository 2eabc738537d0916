#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct F152 : Defaults {
  using Tokens = TokenCounts<96, 120, 152>;
  static constexpr int kConsumers = 2, kStages = 3, kStageGroups = 2;
  static constexpr Scales kScales = Scales::kAny;
};
const char* launch_f152(const Params& p, cudaStream_t stream) { return launch<Config<F152>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
