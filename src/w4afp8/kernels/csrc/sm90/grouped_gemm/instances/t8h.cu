#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T8h : Defaults {
  using Tokens = TokenCounts<8>;
  static constexpr int kConsumers = 2, kStages = 5, kStageGroups = 2, kRoom = 2;
};
const char* launch_t8h(const Params& p, cudaStream_t stream) { return launch<Config<T8h>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
