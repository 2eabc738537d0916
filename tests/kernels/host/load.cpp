// Follows the loading thread of load.cuh on the CPU: how a block begins, and what it does when the offsets that it
// planned with were not the true ones.  Barriers and the copy engine are modelled (copies.h); consumers are one
// thread.
//
//   load ROOM READY SPLIT STAGES SEED ROWS COLS counts as they are read first [, counts as they are]
//
// ROOM: blocks that a multiprocessor has room for; READY: are the weights ready; SPLIT: groups along K of the last wave's
// parts; without second counts there are no offsets.  A first count of 2^30 makes nonsense of the first plan.  Prints a
// line for each stage that the consumers see, `expert row_tile first_row tokens group`, or what is wrong: a stage whose
// codes, scales or x are not its own, a segment that is not the plan's, threads that wait for ever.  With KEEPS in the
// environment the block keeps its first plan.
#include <climits>
#include <cstring>

#include "copies.h"
#include "sm90/grouped_gemm/load.cuh"

using namespace w4afp8;
using namespace w4afp8::grouped_gemm;

template <int kStageCount, int kRooms>
struct Shape : Defaults {
  using Tokens = TokenCounts<8, 16>;
  static constexpr int kConsumers = 2, kStages = kStageCount, kStageGroups = 2, kRoom = kRooms;
};

// As make_plan leaves it.
static void make(const Params& p, const std::vector<int>& counts, int row_tiles, int most, ExpertPlan& plan) {
  std::memset(&plan, 0x5a, sizeof plan);
  plan.active = plan.tiles = 0;
  int first = 0;
  for (size_t e = 0; e < counts.size(); first += counts[e++]) {
    if (counts[e] == 0) continue;
    plan.expert[plan.active] = static_cast<int>(e);
    plan.first_row[plan.active] = first;
    plan.rows[plan.active] = counts[e];
    plan.tiles += divide_up(counts[e], most) * row_tiles;
    plan.tile_end[plan.active++] = plan.tiles;
  }
  for (int i = 0; i < kSearched; ++i) plan.tile_end[plan.active + i] = INT_MAX;
  if (std::count(counts.begin(), counts.end(), 1 << 30)) {  // nonsense
    plan.tiles = static_cast<int>(dice());
    for (int i = 0; i < plan.active; ++i) plan.tile_end[i] = static_cast<int>(dice()), plan.rows[i] = static_cast<int>(dice());
  }
}

template <class C>
void follow(Params p, const std::vector<int>& first, const std::vector<int>& counts, bool dense) {
  static typename C::Smem smem;
  static Arguments args;
  args.p = p;
  args.looks_ahead = false;
  constexpr int kGroups = C::kStageGroups;
  box_bytes[&args.codes_map] = C::kConsumers * kGroups * kTileBytes;
  box_bytes[&args.scale_map] = C::kConsumers * kGroups * kTileRows * 2;
  box_bytes[&args.x_scale_map] = C::kScaleBox * 4;
  for (int i = 0; i < C::Tokens::kNumber; ++i) box_bytes[&args.x_map[i]] = kGroups * C::Tokens::kAll[i] * kTileCols;
  for (int i = 0; i < C::kStages; ++i) {
    ptx::barrier_init(&smem.full[i], 1);
    ptx::barrier_init(&smem.empty[i], 1);  // all consumers are one thread here
  }
  for (int i = 0; i < C::kScaleSlots; ++i) {
    ptx::barrier_init(&smem.scales_full[i], 1);
    ptx::barrier_init(&smem.scales_empty[i], 1);
  }
  for (int i = 0; i < kSegments; ++i) {
    ptx::barrier_init(&smem.segment_full[i], 1);
    ptx::barrier_init(&smem.segment_empty[i], 2);
  }
  std::thread engine = copy_engine();
  const int row_tiles = divide_up(p.rows, kTileRows * C::kConsumers);
  // As kernel.cuh does it.
  make(p, first, row_tiles, C::kMaxTokens, smem.plan);
  begin_early<C>(args, smem);
  std::this_thread::sleep_for(std::chrono::microseconds(dice() % 400));
  {
    std::lock_guard guard(lock);
    previous_has_ended = true;
    changed.notify_all();
  }
  if (!dense) {
    wait_for_previous();
    follow_early<C>(args, smem);
    if (first != counts && std::getenv("KEEPS") == nullptr) {
      make(p, counts, row_tiles, C::kMaxTokens, smem.plan);
      begin_again<C>(args.p, smem);
    }
  }
  static ExpertPlan truth;
  make(p, counts, row_tiles, C::kMaxTokens, truth);
  Walk<1> walk(truth, p, C::kMaxTokens, C::kStageGroups);
  std::thread loader([] { produce<C>(args, smem); });
  std::thread planner([p] { plan_segments<C>(p, smem); });
  Ring<kSegments> segments;
  Ring<C::kStages> ring;
  Ring<C::kScaleSlots> tile;
  while (true) {
    ptx::barrier_wait(&smem.segment_full[segments.stage], segments.phase);
    const Segment s = smem.segment[segments.stage];
    ptx::barrier_arrive(&smem.segment_empty[segments.stage]);
    segments.advance();
    Segment wanted{};
    if (!walk.next(wanted)) wanted.groups = 0;
    if (std::memcmp(&s, &wanted, sizeof s) != 0) fail("a segment that is not the plan's");
    for (int g = s.first_group; g < s.first_group + s.groups; g += kGroups, ring.advance()) {
      ptx::barrier_wait(&smem.full[ring.stage], ring.phase);
      const int block = s.row_tile * C::kConsumers;
      const long x_bytes = kGroups * C::Tokens::count(s.tokens) * kTileCols;
      {
        std::lock_guard guard(lock);
        if (contents[smem.codes[ring.stage]] != std::vector<long>{0, g * 32, block, s.expert}) fail("codes of another stage");
        if (contents[smem.scale[ring.stage].bytes] != std::vector<long>{g * kTileRows, block, s.expert, box_bytes[&args.scale_map]}) {
          fail("scales of another stage");
        }
        if (contents[smem.x[ring.stage]] != std::vector<long>{0, s.first_row, g, x_bytes}) fail("x of another stage");
        contents[smem.codes[ring.stage]].clear();  // used up
      }
      std::printf("%d %d %d %d %d\n", s.expert, s.row_tile, s.first_row, s.tokens, g);
      ptx::barrier_arrive(&smem.empty[ring.stage]);
    }
    if (s.groups > 0 && s.owner && p.x_scale_stride == 1) {
      ptx::barrier_wait(&smem.scales_full[tile.stage], tile.phase);
      ptx::barrier_arrive(&smem.scales_empty[tile.stage]);
      tile.advance();
    }
    if (s.last) break;
  }
  loader.join();
  planner.join();
  {
    std::lock_guard guard(lock);
    all_done = true;
    changed.notify_all();
  }
  engine.join();
  if (!under_way.empty()) fail("copies that nobody waited for");
}

int main(int count, char** words) {
  std::vector<int> n, first, counts;
  for (int i = 1; i < 8; ++i) n.push_back(std::atoi(words[i]));
  bool comma = false;
  for (int i = 8; i < count; ++i) {
    if (words[i][0] == ',') {
      comma = true;
    } else {
      (comma ? counts : first).push_back(std::atoi(words[i]));
    }
  }
  dice.seed(n[4]);
  Params p{};
  p.weights_ready = n[1];
  p.x_scale_stride = 1;
  p.split_groups = n[2];
  p.rows = n[5], p.cols = n[6];
  const bool dense = counts.empty();
  if (dense) counts = first;
  p.offsets = dense ? nullptr : &dice;
  gridDim.x = 3, blockIdx.x = n[4] % 3;
  if (n[0] == 2 && n[3] == 2) follow<Config<Shape<2, 2>>>(p, first, counts, dense);
  if (n[0] == 2 && n[3] == 4) follow<Config<Shape<4, 2>>>(p, first, counts, dense);
  if (n[0] == 1 && n[3] == 2) follow<Config<Shape<2, 1>>>(p, first, counts, dense);
  if (n[0] == 1 && n[3] == 4) follow<Config<Shape<4, 1>>>(p, first, counts, dense);
}
