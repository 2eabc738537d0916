#include "../launch.cuh"

namespace w4afp8::grouped_gemm {
struct T152 : Defaults {
  using Tokens = TokenCounts<120, 136, 152>;
  static constexpr int kConsumers = 2, kStages = 3, kStageGroups = 2;
};
const char* launch_t152(const Params& p, cudaStream_t stream) { return launch<Config<T152>>(p, stream); }
}  // namespace w4afp8::grouped_gemm
