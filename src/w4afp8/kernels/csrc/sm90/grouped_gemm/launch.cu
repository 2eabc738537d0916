#include "launch.h"

#include <cstring>

namespace w4afp8::grouped_gemm {

// One line per file in instances/; the rows in schedules.py carry the same names.
#define W4AFP8_INSTANCES(ROW) \
  ROW(t8) ROW(t16) ROW(t24) ROW(t32) ROW(t32w) ROW(t48) ROW(t64) ROW(t80w) ROW(t96) ROW(t112) ROW(t128) \
  ROW(t152) ROW(t160) \
  ROW(t8d) ROW(t8h) ROW(t16d) ROW(t16h) ROW(t32d) ROW(t152c) ROW(t160c) \
  ROW(p48) ROW(p80) ROW(s64) ROW(f16) ROW(f64) ROW(f152) ROW(g16) ROW(g64) ROW(g128)

#define W4AFP8_DECLARE(name) const char* launch_##name(const Params&, cudaStream_t);
W4AFP8_INSTANCES(W4AFP8_DECLARE)
#undef W4AFP8_DECLARE

const char* run(const char* schedule, const Params& p, cudaStream_t stream) {
#define W4AFP8_ROW(name) {#name, launch_##name},
  static constexpr Instance kInstances[] = {W4AFP8_INSTANCES(W4AFP8_ROW)};
#undef W4AFP8_ROW
  for (const Instance& instance : kInstances) {
    if (std::strcmp(instance.name, schedule) == 0) return instance.launch(p, stream);
  }
  return "no kernel of this name was compiled";
}

}  // namespace w4afp8::grouped_gemm
