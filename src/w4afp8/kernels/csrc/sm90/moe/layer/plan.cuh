// Every block finds by itself which experts have rows, and which tiles it multiplies.
//
// A phase's work is its tiles (run of rows x block of weight rows) in one line.  First come those that are less than
// one a block, cut along K: their tiles times stages lie in one line, too, of which block c gets the c-th equal share.
// A tile that is cut belongs to the block that has its first stage: the others leave partial sums, which it adds in
// block order, so the result is the same on every run.  Then come whole tiles, wave by wave: so experts are done one
// after the other, and the second phase begins with rows that have long been there.
//
// Memory does not serve all blocks alike: when a layer ends they are microseconds apart.  So the last waves are handed
// out, one tile after the other, to whoever asks first.
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
  constexpr int kHere = C::kPairs > kThreads ? 4 : 1;  // pairs of a thread whose loads are under way together
  int id[kHere];
  const auto read = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kHere; ++i) {
      const int pair = begin + i * kThreads;
      id[i] = pair < pairs ? expert_of(r, pair) : -1;
    }
  };
  read(threadIdx.x);
  for (int e = threadIdx.x; e < kMaxExperts; e += kThreads) plan.count[e] = 0;
  __syncthreads();
  for (int begin = threadIdx.x; begin < pairs; begin += kHere * kThreads) {
    if (begin >= kThreads) read(begin);
#pragma unroll
    for (int i = 0; i < kHere; ++i) {
      if (id[i] < 0) break;
      plan.id[begin + i * kThreads] = static_cast<uint16_t>(id[i]);
      if (id[i] < r.experts) atomicAdd(&plan.count[id[i]], 1u);
    }
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

// Where block c's equal share of so many units begins.
struct Shares {
  int each, more;
  __device__ explicit Shares(int units) : each(units / static_cast<int>(gridDim.x)), more(units - each * gridDim.x) {}
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

// One block's walk over its segments, for one thread.
template <class C>
class Walk {
  static constexpr int kTokens = C::kTokens;
  using Plan = typename C::Plan;

 public:
  // `taken` counts the tiles that were handed out; of few pairs none are.
  __device__ Walk(const Layer& p, const Plan& plan, uint32_t* taken) : p_(p), plan_(plan), taken_(taken), shares_(0) {
    enter(kGateUp);
  }

  __device__ bool next(Segment& s) {
    if (step(s)) return true;
    if (phase_ == kDown) return false;
    enter(kDown);
    return step(s);
  }

 private:
  __device__ void enter(Phase phase) {
    phase_ = phase;
    row_tiles_ = p_.row_tiles[phase];
    stages_ = p_.stages[phase];
    // A gate_up tile takes two neighbouring row blocks of each half, a down tile four.
    tile_stages_ = (phase == kGateUp ? kConsumers / 2 : kConsumers) * stages_;
    expert_stages_ = p_.weight[phase].row_blocks * stages_;
    tiles_ = plan_.runs * row_tiles_;
    const int blocks = gridDim.x, waves = tiles_ / blocks, cut = tiles_ - waves * blocks;
    const int handed_out = C::kFew || phase == kGateUp ? 0 : min(waves / kTailPart, kTailStages / stages_);
    whole_ = tiles_ - handed_out * blocks;
    shares_ = Shares(cut * stages_);
    unit_ = shares_.begin(blockIdx.x);
    unit_end_ = shares_.begin(blockIdx.x + 1);
    tile_ = cut + blockIdx.x;
    if (tiles_ > 0) stand_in(0);
  }

  __device__ bool step(Segment& s) {
    int tile = tile_, first = 0, count = stages_, peers = 0;
    if (unit_ < unit_end_) {
      tile = unit_ / stages_;
      first = unit_ - tile * stages_;
      count = min(stages_ - first, unit_end_ - unit_);
      if (first == 0 && count < stages_) {
        peers = shares_.block_from(unit_ + stages_) - 1 - static_cast<int>(blockIdx.x);
      }
      unit_ += count;
    } else if (tile < whole_) {
      tile_ += gridDim.x;
    } else {
      if (C::kFew || whole_ == tiles_) return false;
      tile = whole_ + static_cast<int>(atomicAdd(taken_, 1u));
      if (tile >= tiles_) return false;
    }
    int slot = slot_;
    while (plan_.run_end[slot] * row_tiles_ <= tile) ++slot;
    if (slot != slot_) stand_in(slot);
    const int local = tile - first_run_ * row_tiles_;
    const int row_tile = runs_ == 1 ? local : local / runs_, run = local - row_tile * runs_;
    s.phase = phase_;
    s.stages = count;
    s.row_tile = row_tile;
    s.weight_stage = weight_stage_ + row_tile * tile_stages_ + first;
    s.run = first_run_ + run;
    s.first_row = first_row_ + run * kTokens;
    s.block8 = block8_ + run * (kTokens / 8);
    s.tokens = min(kTokens, rows_ - run * kTokens);
    s.first_stage = first;
    s.owner = first == 0;
    s.peers = peers;
    s.shared = runs_ > 1;
    return true;
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
  uint32_t* taken_;
  Shares shares_;
  Phase phase_;
  int row_tiles_, stages_, tile_stages_, expert_stages_;
  int unit_, unit_end_;      // what is left of this block's share of the tiles that are cut
  int tile_, whole_, tiles_;  // the next of its whole ones; where those end; where all end
  int slot_, first_run_, runs_, rows_, first_row_, block8_, weight_stage_;  // the expert it stands in
};

}  // namespace w4afp8::moe::layer
