#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct F64 : Defaults {
  using Tokens = TokenCounts<32, 64>;
  static constexpr int kConsumers = 2, kStages = 8, kStageGroups = 1;
  static constexpr Scales kScales = Scales::kAny;
};
const char* launch_f64(const Params& p, cudaStream_t stream) { return launch<Config<F64>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
