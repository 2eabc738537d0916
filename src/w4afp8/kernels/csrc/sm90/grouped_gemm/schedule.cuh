// Which tile a block works on next.  A tile is (expert, block of rows, run of tokens); tiles are counted from the
// expert offsets on the device, so nothing waits for the host.
//
// A team is a block, or the blocks of a cluster; the tiles of a team's blocks lie side by side, and count as one tile.
// Whole waves of tiles go round robin.  What is left, less than one tile a team, is split along K: team c takes the
// c-th equal share of the remaining (tile, group) pairs.  A tile's first share owns it: the others leave float partial
// sums, and the owner adds them in the teams' order, so the result is the same on every run.
//
// A team leaves the sums that others want before it waits for any, and waits for teams of higher numbers alone.  Blocks
// begin in the order of their numbers, so of those that have begun only one team, the owner of the tile at the border,
// can wait for one that has not; the others end and make room.  So a kernel ends that does not have the device alone.
#pragma once
#include <climits>

#include "../scan.cuh"
#include "config.h"
#include "offsets.cuh"
#include "params.h"

namespace w4afp8::grouped_gemm {

// The blocks that walk as one: a cluster, or a block alone.  Its blocks take neighbouring row tiles of the same tokens.
template <int kSize>
struct Team {
  __device__ static int index() { return kSize == 1 ? blockIdx.x : blockIdx.x / kSize; }
  __device__ static int count() { return kSize == 1 ? gridDim.x : gridDim.x / kSize; }
  __device__ static int rank() { return kSize == 1 ? 0 : blockIdx.x % kSize; }
};

// Of a count of experts and tiles.  Offsets that are nonsense may make more than an int holds, and are not to be worked
// on.
__device__ __forceinline__ int tiles_of(uint64_t count) {
  return static_cast<int>(min(count & ((uint64_t{1} << 48) - 1), uint64_t{INT_MAX / 2}));
}

// All threads of the block; ends with a barrier.
template <int kThreads>
__device__ void make_plan(const Params& p, const Offsets<kThreads>& offsets, int row_tiles, int max_tokens,
                          ExpertPlan& plan) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t before = 0;  // experts that have tokens, above 48 bits of tiles
#pragma unroll
  for (int i = 0; i < Offsets<kThreads>::kEach; ++i) {
    const int e = i * kThreads + threadIdx.x, rows = offsets.rows[i];
    if (i * kThreads >= p.experts) break;
    const uint64_t tiles = static_cast<uint64_t>(divide_up(rows, max_tokens)) * row_tiles;
    uint64_t sum = running_sum((uint64_t{rows > 0} << 48) + tiles);
    if (lane == 31) plan.warp_total[warp] = sum;
    __syncthreads();
    uint64_t total = 0, here = before;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w == warp) here += total;
      total += plan.warp_total[w];
    }
    sum += here;
    if (rows > 0) {
      const int slot = static_cast<int>(sum >> 48) - 1;
      plan.expert[slot] = e;
      plan.first_row[slot] = offsets.first[i];
      plan.rows[slot] = rows;
      plan.tile_end[slot] = tiles_of(sum);
    }
    before += total;
    __syncthreads();
  }
  if (threadIdx.x < kSearched) plan.tile_end[(before >> 48) + threadIdx.x] = INT_MAX;
  if (threadIdx.x == 0) {
    plan.active = static_cast<int>(before >> 48);
    plan.tiles = tiles_of(before);
  }
  __syncthreads();
}

// One team's walk over its segments, for one thread; the blocks of a team see the same ones.  Along K it counts in
// stages of `stage_groups` scale groups.
template <int kTeamSize>
class Walk {
  using Own = Team<kTeamSize>;

 public:
  __device__ Walk(const ExpertPlan& plan, const Params& p, int max_tokens, int stage_groups)
      : plan_(plan), max_tokens_(max_tokens), stage_groups_(stage_groups),
        stages_(p.cols / kTileCols / stage_groups), tile_(Own::index()) {
    const int teams = Own::count();
    whole_ = p.split_groups > 0 ? plan.tiles / teams * teams : plan.tiles;
    const int rest = plan.tiles - whole_;
    units_ = rest * stages_;
    workers_ = p.split_groups > 0 ? min(teams, max(rest, units_ * stage_groups / p.split_groups)) : 1;
    const int c = Own::index();
    unit_ = c < workers_ ? share(c) : units_;
    unit_end_ = c < workers_ ? share(c + 1) : units_;
    enter(0);
  }

  __device__ bool next(Segment& s) {
    const bool found = step(s);
    s.last = tile_ >= whole_ && unit_ >= unit_end_;
    return found;
  }

 private:
  __device__ bool step(Segment& s) {
    s.first_peer = s.end_peer = 0;
    s.owner = true;
    if (tile_ < whole_) {
      s.first_group = 0;
      s.groups = stages_ * stage_groups_;
      place(tile_, s);
      tile_ += Own::count();
      return true;
    }
    if (unit_ >= unit_end_) return false;
    const int tile = unit_ / stages_;
    const int first = unit_ - tile * stages_;
    const int count = min(stages_ - first, unit_end_ - unit_);
    s.first_group = first * stage_groups_;
    s.groups = count * stage_groups_;
    s.owner = first == 0;
    if (s.owner && count < stages_) {
      s.first_peer = s.end_peer = Own::index() + 1;
      while (s.end_peer < workers_ && share(s.end_peer) < (tile + 1) * stages_) ++s.end_peer;
    }
    place(whole_ + tile, s);
    unit_ += count;
    return true;
  }

  __device__ int share(int c) const { return static_cast<int>(static_cast<long long>(units_) * c / workers_); }

  __device__ void enter(int slot) {
    slot_ = slot;
    tile_begin_ = slot == 0 ? 0 : plan_.tile_end[slot - 1];
    tile_end_ = plan_.tile_end[slot];
    rows_ = plan_.rows[slot];
    runs_ = rows_ <= max_tokens_ ? 1 : divide_up(rows_, max_tokens_);
    step_ = runs_ == 1 ? rows_ : divide_up(divide_up(rows_, runs_), 8) * 8;
  }

  // Tokens of an expert are cut into equal tiles; tiles that share weights are neighbours.
  __device__ void place(int tile, Segment& s) {
    if (tile >= tile_end_) {
      int slot = slot_ + 1;  // a step may pass over many experts: several loads at once
      while (tile >= plan_.tile_end[slot + kSearched - 1]) slot += kSearched;
      int past = 0;
#pragma unroll
      for (int i = 0; i < kSearched - 1; ++i) past += tile >= plan_.tile_end[slot + i];
      enter(slot + past);
    }
    const int local = tile - tile_begin_;
    const int row = runs_ == 1 ? local : local / runs_;
    const int run = runs_ == 1 ? 0 : local - row * runs_;
    s.row_tile = row * kTeamSize + Own::rank();
    s.expert = plan_.expert[slot_];
    s.shared = runs_ > 1;
    s.first_row = plan_.first_row[slot_] + run * step_;
    s.tokens = min(step_, rows_ - run * step_);
  }

  const ExpertPlan& plan_;
  const int max_tokens_, stage_groups_, stages_;
  int tile_;
  int whole_, units_, workers_, unit_, unit_end_;
  int slot_, tile_begin_, tile_end_, rows_, runs_, step_;  // the expert it stands in
};

}  // namespace w4afp8::grouped_gemm
