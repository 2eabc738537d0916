#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct G16 : Defaults {
  using Tokens = TokenCounts<8, 16>;
  static constexpr int kConsumers = 4, kStages = 9, kStageGroups = 1;
  static constexpr bool kGroupScale = true;
  static constexpr Scales kScales = Scales::kAny;
};
const char* launch_g16(const Params& p, cudaStream_t stream) { return launch<Config<G16>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
