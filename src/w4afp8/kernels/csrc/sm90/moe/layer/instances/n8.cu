#include "../launch.cuh"

namespace w4afp8::moe::layer {
const char* launch_n8(const Layer& p, cudaStream_t stream) { return launch<Config<8, 5>>(p, stream); }
}  // namespace w4afp8::moe::layer
