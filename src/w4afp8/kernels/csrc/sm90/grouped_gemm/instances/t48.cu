#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T48 : Defaults {
  using Tokens = TokenCounts<32, 40, 48>;
  static constexpr int kConsumers = 3, kStages = 5, kStageGroups = 2;
};
const char* launch_t48(const Params& p, cudaStream_t stream) { return launch<Config<T48>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
