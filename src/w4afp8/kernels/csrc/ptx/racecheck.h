// Is this the build for compute-sanitizer's racecheck?
#pragma once

namespace w4afp8::ptx {

// The checker does not know that a warp's load ends for all of its lanes together, nor always whom a bar.arrive orders.
// Built for it, every lane says that it has read, and an mbarrier stands in for each such bar.arrive.
#ifdef W4AFP8_FOR_RACECHECK
constexpr bool kForRacecheck = true;
#else
constexpr bool kForRacecheck = false;
#endif

}  // namespace w4afp8::ptx
