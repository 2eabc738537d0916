#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T16 : Defaults {
  using Tokens = TokenCounts<8, 16>;
  static constexpr int kConsumers = 4, kStages = 5, kStageGroups = 2;
};
const char* launch_t16(const Params& p, cudaStream_t stream) { return launch<Config<T16>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
