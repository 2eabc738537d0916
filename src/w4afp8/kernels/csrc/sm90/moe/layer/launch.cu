#include "launch.h"

#include <cstring>

namespace w4afp8::moe::layer {

// One line per file in instances/; the rows in layers.py carry the same names.
#define W4AFP8_LAYERS(ROW) ROW(n8f) ROW(n8) ROW(n16)

#define W4AFP8_DECLARE(name) const char* launch_##name(const Layer&, cudaStream_t);
W4AFP8_LAYERS(W4AFP8_DECLARE)
#undef W4AFP8_DECLARE

const char* run(const char* name, const Layer& p, cudaStream_t stream) {
  if (p.routing.tokens * p.routing.top_k > kMaxPairs) return "more pairs than the one-launch layer's plan holds";
  if (p.routing.experts > kMaxExperts) return "more experts than the one-launch layer's plan holds";
  if (p.routing.top_k > kMaxTopK) return "top_k is larger than 64";
#define W4AFP8_ROW(row) \
  if (std::strcmp(name, #row) == 0) return launch_##row(p, stream);
  W4AFP8_LAYERS(W4AFP8_ROW)
#undef W4AFP8_ROW
  return "no layer kernel of this name was compiled";
}

}  // namespace w4afp8::moe::layer
