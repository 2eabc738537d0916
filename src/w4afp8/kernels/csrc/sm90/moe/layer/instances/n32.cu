#include "../launch.cuh"

namespace w4afp8::moe::layer {
const char* launch_n32(const Layer& p, cudaStream_t stream) { return launch<Config<32, 4>>(p, stream); }
}  // namespace w4afp8::moe::layer
