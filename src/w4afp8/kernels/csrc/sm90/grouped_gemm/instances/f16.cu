#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct F16 : Defaults {
  using Tokens = TokenCounts<8, 16>;
  static constexpr int kConsumers = 4, kStages = 5, kStageGroups = 2;
  static constexpr Scales kScales = Scales::kAny;
};
const char* launch_f16(const Params& p, cudaStream_t stream) { return launch<Config<F16>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
