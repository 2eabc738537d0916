// Segments on their way from the thread that plans them to those that work on them.  Planned beside the work, they cost
// consumers neither the time nor the registers that finding the next tile takes.
#pragma once
#include "../queue.cuh"
#include "schedule.cuh"

namespace w4afp8::grouped_gemm {

template <class C>
constexpr int kSegmentReaders = 4 * C::kConsumers + 1;  // consumer warps and the loading thread

// One thread.
template <class C>
__device__ void plan_segments(const Params& p, typename C::Smem& smem) {
  Walk<C::kCluster> walk(smem.plan, p, C::kMaxTokens, C::kStageGroups);
  Ring<kSegments> ring;
  Segment s{};
  do {
    if (!walk.next(s)) s.groups = 0;
    hand_out(smem, ring, s);
  } while (!s.last);
}

// The next segment, for a whole warp or for one thread.
template <bool kWarp, class Smem>
__device__ __forceinline__ Segment next_segment(Smem& smem, Ring<kSegments>& ring) {
  Segment s;
  take<kWarp>(smem, ring, s, [](const Segment& s) {
    const uint32_t all = s.row_tile | s.first_row | s.tokens | s.first_group | s.groups | s.owner | s.last;
    return all | (kWarp ? s.first_peer | s.end_peer : s.shared | s.expert);
  });
  return s;
}

}  // namespace w4afp8::grouped_gemm
