#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T16h : Defaults {
  using Tokens = TokenCounts<8, 16>;
  static constexpr int kConsumers = 2, kStages = 4, kStageGroups = 2, kRoom = 2;
};
const char* launch_t16h(const Params& p, cudaStream_t stream) { return launch<Config<T16h>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
