#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct G64 : Defaults {
  using Tokens = TokenCounts<32, 64>;
  static constexpr int kConsumers = 3, kStages = 6, kStageGroups = 1;
  static constexpr bool kGroupScale = true;
  static constexpr Scales kScales = Scales::kAny;
};
const char* launch_g64(const Params& p, cudaStream_t stream) { return launch<Config<G64>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
