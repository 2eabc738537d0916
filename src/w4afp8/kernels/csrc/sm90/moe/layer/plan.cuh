// Every block finds by itself which experts have rows, and which tiles it multiplies.
//
// A phase's work is its tiles (run of rows x block of weight rows) times their stages along K, in one line; block c gets
// the c-th equal share.  A tile that is cut belongs to the block that has its first stage: the others leave partial
// sums, which it adds in block order, so the result is the same on every run.
#pragma once
#include "../../scan.cuh"
#include "../pairs.cuh"
#include "config.h"

namespace w4afp8::moe::layer {

// All threads; ends with a barrier.
template <int kTokens>
__device__ void make_plan(const Layer& p, Plan& plan) {
  const Routing& r = p.routing;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pairs = r.tokens * r.top_k;
  for (int e = threadIdx.x; e < kMaxExperts; e += kThreads) plan.count[e] = 0;
  __syncthreads();
  for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
    const int e = expert_of(r, pair);
    plan.id[pair] = static_cast<uint16_t>(e);
    if (e < r.experts) atomicAdd(&plan.count[e], 1u);
  }
  __syncthreads();
  // One running sum of four numbers: rows, eights of rows, runs, experts.
  static_assert(kThreads >= kMaxExperts, "a thread an expert");
  const int e = threadIdx.x;
  const uint32_t rows = e < kMaxExperts ? plan.count[e] : 0;
  const uint64_t own = rows | uint64_t{(rows + 7) / 8} << 16 | uint64_t{(rows + kTokens - 1) / kTokens} << 32 |
                       uint64_t{rows > 0} << 48;
  uint64_t sum = running_sum(own);
  if (lane == 31) plan.warp_total[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += plan.warp_total[w];
  const uint64_t before = sum - own;
  if (e < kMaxExperts) {
    plan.expert_row[e] = static_cast<uint16_t>(before);
    plan.expert_block8[e] = static_cast<uint16_t>(before >> 16);
  }
  if (rows > 0) {
    const int slot = static_cast<int>(before >> 48);
    plan.expert[slot] = static_cast<uint16_t>(e);
    plan.rows[slot] = static_cast<uint16_t>(rows);
    plan.first_row[slot] = static_cast<uint16_t>(before);
    plan.block8[slot] = static_cast<uint16_t>(before >> 16);
    plan.run_end[slot] = static_cast<uint16_t>(sum >> 32);
  }
  if (threadIdx.x == kThreads - 1) {
    plan.active = static_cast<int>(sum >> 48);
    plan.runs = static_cast<int>(sum >> 32 & 0xffff);
  }
  __syncthreads();
}

// Blocks that share the quantizing of a token: each finds its scale, and writes a part of it.
__device__ __forceinline__ int token_parts(const Layer& p) {
  const int spare = static_cast<int>(gridDim.x) / p.routing.tokens;
  return spare < 2 ? 1 : spare < 4 ? 2 : spare < 8 ? 4 : 8;
}

// Where block c's equal share of a phase's work begins.
struct Shares {
  int each, more;
  __device__ Shares(const Layer& p, const Plan& plan, Phase phase) {
    const int units = plan.runs * p.row_tiles[phase] * p.stages[phase], blocks = gridDim.x;
    each = units / blocks;
    more = units - each * blocks;
  }
  __device__ int begin(int c) const { return c * each + min(c, more); }
};

// The row block of a consumer's weights; a down tile that ends beyond the last repeats the last.
__device__ __forceinline__ int row_block(const Layer& p, const Segment& s, int consumer) {
  if (s.phase == kGateUp) return consumer / 2 * (p.inner / kTileRows) + s.row_tile * 2 + consumer % 2;
  return min(s.row_tile * kConsumers + consumer, p.weight[kDown].row_blocks - 1);
}

// One block's walk over its segments.
template <int kTokens>
class Walk {
 public:
  __device__ Walk(const Layer& p, const Plan& plan) : p_(p), plan_(plan) { enter(kGateUp); }

  __device__ bool next(Segment& s) {
    if (unit_ >= unit_end_) {
      if (phase_ == kDown) return false;
      enter(kDown);
      if (unit_ >= unit_end_) return false;
    }
    const int tile = unit_ / stages_, first = unit_ - tile * stages_;
    const int count = min(stages_ - first, unit_end_ - unit_);
    s.phase = phase_;
    s.first_stage = first;
    s.stages = count;
    s.owner = first == 0;
    s.end_unit = count < stages_ ? (tile + 1) * stages_ : 0;
    place(tile, s);
    unit_ += count;
    return true;
  }

 private:
  __device__ void enter(Phase phase) {
    phase_ = phase;
    row_tiles_ = p_.row_tiles[phase];
    stages_ = p_.stages[phase];
    const Shares shares(p_, plan_, phase);
    unit_ = shares.begin(blockIdx.x);
    unit_end_ = shares.begin(blockIdx.x + 1);
    int low = 0, high = plan_.active - 1;  // the slot of the first tile
    while (low < high) {
      const int middle = (low + high) / 2;
      if (plan_.run_end[middle] * row_tiles_ * stages_ > unit_) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    slot_ = low;
  }

  __device__ void place(int tile, Segment& s) {
    while (tile >= plan_.run_end[slot_] * row_tiles_) ++slot_;
    const int first_run = slot_ == 0 ? 0 : plan_.run_end[slot_ - 1];
    const int runs = plan_.run_end[slot_] - first_run;
    const int local = tile - first_run * row_tiles_;
    s.row_tile = runs == 1 ? local : local / runs;  // runs that share weights are neighbours
    const int run = runs == 1 ? 0 : local - s.row_tile * runs;
    s.expert = plan_.expert[slot_];
    s.run = first_run + run;
    s.first_row = plan_.first_row[slot_] + run * kTokens;
    s.block8 = plan_.block8[slot_] + run * (kTokens / 8);
    s.tokens = min(kTokens, plan_.rows[slot_] - run * kTokens);
    s.shared = runs > 1;
  }

  const Layer& p_;
  const Plan& plan_;
  Phase phase_;
  int row_tiles_, stages_, unit_, unit_end_, slot_;
};

}  // namespace w4afp8::moe::layer
