#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T112 : Defaults {
  using Tokens = TokenCounts<96, 104, 112>;
  static constexpr int kConsumers = 2, kStages = 4, kStageGroups = 2;
};
const char* launch_t112(const Params& p, cudaStream_t stream) { return launch<Config<T112>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
