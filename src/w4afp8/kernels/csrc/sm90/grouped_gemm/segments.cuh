// Segments on their way from the thread that plans them to those that work on them.  Planned beside the work, they cost
// consumers neither the time nor the registers that finding the next tile takes.
#pragma once
#include "../queue.cuh"
#include "schedule.cuh"

namespace w4afp8::grouped_gemm {

template <class C>
constexpr int kSegmentReaders = 4 * C::kConsumers * ptx::kArrivals + 1;  // consumer warps and the loading thread

// How many segments a thread plans before it is known that what they are planned from stands.  A block that has a
// multiprocessor to itself begins when that of the GEMM before leaves it, as a rule, and has time for one.
template <class C>
constexpr int kPlannedEarly = C::kRoom > 1 ? kSegments : 1;

// One thread: those, each handed to `use` at once, and to the others by a barrier of all that must follow.  Called a
// second time it replaces them.
template <class C, class Use>
__device__ void plan_early(const Params& p, typename C::Smem& smem, int handed_out, Use&& use) {
  Walk<C::kCluster> walk(smem.plan, p, C::kMaxTokens, C::kStageGroups);
  Segment s{};
  int planned = 0;
  do {
    if (!walk.next(s)) s.groups = 0;
    smem.segment[planned] = s;
    if (planned >= handed_out) ptx::barrier_arrive(&smem.segment_full[planned]);
    ++planned;
    use(s);
  } while (!s.last && planned < kPlannedEarly<C>);
  smem.planned = planned;
}

// One thread: the segments that follow.
template <class C>
__device__ void plan_segments(const Params& p, typename C::Smem& smem) {
  const int planned = smem.planned;
  Walk<C::kCluster> walk(smem.plan, p, C::kMaxTokens, C::kStageGroups);
  Ring<kSegments> ring;
  Segment s{};
  for (int i = 0; i < planned; ++i, ring.advance()) walk.next(s);
  while (!s.last) {
    if (!walk.next(s)) s.groups = 0;
    hand_out(smem, ring, s);
  }
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
