#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T32 : Defaults {
  using Tokens = TokenCounts<24, 32>;
  static constexpr int kConsumers = 4, kStages = 4, kStageGroups = 2;
};
const char* launch_t32(const Params& p, cudaStream_t stream) { return launch<Config<T32>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
