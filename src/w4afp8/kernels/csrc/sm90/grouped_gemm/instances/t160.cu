#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T160 : Defaults {
  using Tokens = TokenCounts<128, 144, 160>;
  static constexpr int kConsumers = 2, kStages = 3, kStageGroups = 2;
};
const char* launch_t160(const Params& p, cudaStream_t stream) { return launch<Config<T160>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
