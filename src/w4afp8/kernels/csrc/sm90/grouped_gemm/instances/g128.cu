#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct G128 : Defaults {
  using Tokens = TokenCounts<96, 128>;
  static constexpr int kConsumers = 2, kStages = 7, kStageGroups = 1;
  static constexpr bool kGroupScale = true;
  static constexpr Scales kScales = Scales::kAny;
};
const char* launch_g128(const Params& p, cudaStream_t stream) { return launch<Config<G128>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
