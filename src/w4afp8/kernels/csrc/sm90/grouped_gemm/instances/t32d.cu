#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T32d : Defaults {
  using Tokens = TokenCounts<16, 32>;
  static constexpr int kConsumers = 2, kStages = 3, kStageGroups = 2, kRoom = 2, kBlocks = 2;
};
const char* launch_t32d(const Params& p, cudaStream_t stream) { return launch<Config<T32d>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
