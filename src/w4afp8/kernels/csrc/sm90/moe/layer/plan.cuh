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
template <class C>
__device__ void make_plan(const Layer& p, typename C::Plan& plan) {
  constexpr int kTokens = C::kTokens;
  const Routing& r = p.routing;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pairs = r.tokens * r.top_k;
  const int first = static_cast<int>(threadIdx.x) < pairs ? expert_of(r, threadIdx.x) : 0;  // under way over the barrier
  for (int e = threadIdx.x; e < kMaxExperts; e += kThreads) plan.count[e] = 0;
  __syncthreads();
  const auto count = [&](int pair, int e) {
    plan.id[pair] = static_cast<uint16_t>(e);
    if (e < r.experts) atomicAdd(&plan.count[e], 1u);
  };
  if (static_cast<int>(threadIdx.x) < pairs) count(threadIdx.x, first);
  if constexpr (C::kPairs > kThreads) {
    for (int pair = threadIdx.x + kThreads; pair < pairs; pair += kThreads) count(pair, expert_of(r, pair));
  }
  __syncthreads();
  // One running sum of four numbers: rows, eights of rows, runs, experts.
  static_assert(kThreads >= kMaxExperts && kThreads <= 1024, "a thread an expert, a lane a warp");
  const int e = threadIdx.x;
  const uint32_t rows = e < kMaxExperts ? plan.count[e] : 0;
  const uint64_t own = rows | uint64_t{(rows + 7) / 8} << 16 | uint64_t{(rows + kTokens - 1) / kTokens} << 32 |
                       uint64_t{rows > 0} << 48;
  uint64_t sum = running_sum(own);
  if (lane == 31) plan.warp_total[warp] = sum;
  __syncthreads();
  const uint64_t left = lane < warp ? plan.warp_total[lane] : 0;  // of the warps before this one
  const uint32_t low = __reduce_add_sync(~0u, static_cast<uint32_t>(left));  // sixteen bits hold each number's sum
  const uint32_t high = __reduce_add_sync(~0u, static_cast<uint32_t>(left >> 32));
  sum += low | uint64_t{high} << 32;
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
  __device__ Shares(const Layer& p, int runs, Phase phase) {
    const int units = runs * p.row_tiles[phase] * p.stages[phase], blocks = gridDim.x;
    each = units / blocks;
    more = units - each * blocks;
  }
  __device__ int begin(int c) const { return c * each + min(c, more); }
  // The first block whose share begins at `unit` or later.
  __device__ int block_from(int unit) const {
    const int larger = more * (each + 1);  // units of the blocks that have one more
    return unit <= larger ? (unit + each) / (each + 1) : more + (unit - larger + each - 1) / each;
  }
};

// Whether a block completes no more than two or three gate_up tiles.
__device__ __forceinline__ bool tiles_are_few(const Layer& p, int runs) {
  return runs * p.row_tiles[kGateUp] <= 2 * static_cast<int>(gridDim.x);
}

// One block's walk over its segments.  One thread takes it, and a block may ask for a tile every microsecond: a step
// divides and searches nothing.
template <class C>
class Walk {
  static constexpr int kTokens = C::kTokens;
  using Plan = typename C::Plan;

 public:
  __device__ Walk(const Layer& p, const Plan& plan) : p_(p), plan_(plan), shares_(p, plan.runs, kGateUp) { enter(kGateUp); }

  __device__ bool next(Segment& s) {
    if (unit_ >= unit_end_) {
      if (phase_ == kDown) return false;
      enter(kDown);
      if (unit_ >= unit_end_) return false;
    }
    const int count = min(stages_ - stage_, unit_end_ - unit_);
    s.phase = phase_;
    s.stages = count;
    s.row_tile = row_tile_;
    s.weight_stage = weight_stage_ + row_tile_ * tile_stages_ + stage_;
    s.run = first_run_ + run_;
    s.first_row = first_row_ + run_ * kTokens;
    s.block8 = block8_ + run_ * (kTokens / 8);
    s.tokens = min(kTokens, rows_ - run_ * kTokens);
    s.first_stage = stage_;
    s.owner = stage_ == 0;
    s.peers = s.owner && count < stages_ ? shares_.block_from(unit_ + stages_) - 1 - static_cast<int>(blockIdx.x) : 0;
    s.shared = runs_ > 1;
    unit_ += count;
    stage_ = 0;  // whoever stops inside a tile has nothing more in this phase
    if (++run_ < runs_) return true;
    run_ = 0;  // runs that share weights are neighbours
    if (++row_tile_ < row_tiles_) return true;
    row_tile_ = 0;
    if (unit_ < unit_end_) stand_in(slot_ + 1);
    return true;
  }

 private:
  __device__ void enter(Phase phase) {
    phase_ = phase;
    row_tiles_ = p_.row_tiles[phase];
    stages_ = p_.stages[phase];
    // A gate_up tile takes two neighbouring row blocks of each half, a down tile four.
    tile_stages_ = (phase == kGateUp ? kConsumers / 2 : kConsumers) * stages_;
    expert_stages_ = p_.weight[phase].row_blocks * stages_;
    shares_ = Shares(p_, plan_.runs, phase);
    unit_ = shares_.begin(blockIdx.x);
    unit_end_ = shares_.begin(blockIdx.x + 1);
    if (unit_ >= unit_end_) return;
    const int tile = unit_ / stages_;
    stage_ = unit_ - tile * stages_;
    int low = 0, high = plan_.active - 1;  // the slot of the first tile
    while (low < high) {
      const int middle = (low + high) / 2;
      if (plan_.run_end[middle] * row_tiles_ > tile) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    stand_in(low);
    const int local = tile - first_run_ * row_tiles_;
    row_tile_ = local / runs_;
    run_ = local - row_tile_ * runs_;
  }

  __device__ void stand_in(int slot) {
    slot_ = slot;
    first_run_ = slot == 0 ? 0 : plan_.run_end[slot - 1];
    runs_ = plan_.run_end[slot] - first_run_;
    rows_ = plan_.rows[slot];
    first_row_ = plan_.first_row[slot];
    block8_ = plan_.block8[slot];
    weight_stage_ = plan_.expert[slot] * expert_stages_;
  }

  const Layer& p_;
  const Plan& plan_;
  Shares shares_;
  Phase phase_;
  int row_tiles_, stages_, tile_stages_, expert_stages_;
  int unit_, unit_end_, stage_ = 0, row_tile_ = 0, run_ = 0;
  int slot_, first_run_, runs_, rows_, first_row_, block8_, weight_stage_;  // the expert it stands in
};

}  // namespace w4afp8::moe::layer
