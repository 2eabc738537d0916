#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T80w : Defaults {
  using Tokens = TokenCounts<72, 80>;
  static constexpr int kConsumers = 3, kStages = 4, kStageGroups = 2;
};
const char* launch_t80w(const Params& p, cudaStream_t stream) { return launch<Config<T80w>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
