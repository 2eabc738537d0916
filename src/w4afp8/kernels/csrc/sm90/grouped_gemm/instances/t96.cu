#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T96 : Defaults {
  using Tokens = TokenCounts<64, 80, 96>;
  static constexpr int kConsumers = 2, kStages = 4, kStageGroups = 2;
};
const char* launch_t96(const Params& p, cudaStream_t stream) { return launch<Config<T96>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
