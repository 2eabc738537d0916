#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T8d : Defaults {
  using Tokens = TokenCounts<8>;
  static constexpr int kConsumers = 2, kStages = 5, kStageGroups = 2, kRoom = 2, kBlocks = 2;
};
const char* launch_t8d(const Params& p, cudaStream_t stream) { return launch<Config<T8d>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
