// Segments of work on their way from the thread that plans them to those that work on them.  Shared memory has places for
// a few: `segment`, and of each whether it is there, `segment_full`, and whether all have read it, `segment_empty`.
#pragma once
#include "../ptx/mbarrier.cuh"
#include "ring.cuh"

namespace w4afp8 {

// One thread.
template <class Smem, int kPlaces, class Segment>
__device__ __forceinline__ void hand_out(Smem& smem, Ring<kPlaces>& ring, const Segment& s) {
  ptx::barrier_wait(&smem.segment_empty[ring.stage], ring.phase ^ 1);
  smem.segment[ring.stage] = s;
  ptx::barrier_arrive(&smem.segment_full[ring.stage]);
  ring.advance();
}

// A whole warp, or one thread.  `bits` of a segment: of all that is read of it, else the planning thread may be faster than
// the loads.
template <bool kWarp, class Smem, int kPlaces, class Segment, class Bits>
__device__ __forceinline__ void take(Smem& smem, Ring<kPlaces>& ring, Segment& s, Bits&& bits) {
  ptx::barrier_wait(&smem.segment_full[ring.stage], ring.phase);
  s = smem.segment[ring.stage];
  if constexpr (kWarp) __syncwarp();
  const uint32_t loaded = bits(s);
  if (!kWarp || ptx::arrives(threadIdx.x)) ptx::barrier_arrive_after(&smem.segment_empty[ring.stage], loaded);
  ring.advance();
}

}  // namespace w4afp8
