#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T16d : Defaults {
  using Tokens = TokenCounts<8, 16>;
  static constexpr int kConsumers = 2, kStages = 4, kStageGroups = 2, kRoom = 2, kBlocks = 2;
};
const char* launch_t16d(const Params& p, cudaStream_t stream) { return launch<Config<T16d>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
