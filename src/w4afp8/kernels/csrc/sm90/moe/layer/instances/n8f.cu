#include "../launch.cuh"

namespace w4afp8::moe::layer {
const char* launch_n8f(const Layer& p, cudaStream_t stream) { return launch<Config<8, 5, true>>(p, stream); }
}  // namespace w4afp8::moe::layer
