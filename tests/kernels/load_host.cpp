// Follows the loading thread of load.cuh on the CPU: how a block begins, and what it does when the offsets that it
// planned with were not the true ones.  Barriers, the copy engine and the other threads are modelled, each a thread.
//
//   load_host ROOM READY SPLIT STAGES SEED ROWS COLS counts as they are read first [, counts as they are]
//
// ROOM: blocks that a multiprocessor has room for; READY: are the weights ready; SPLIT: groups along K of the last wave's
// parts; without second counts there are no offsets.  A first count of 2^30 makes nonsense of the first plan.  Prints a
// line for each stage that the consumers see, `expert row_tile first_row tokens group`, or what is wrong: a stage whose
// codes, scales or x are not its own, a segment that is not the plan's, threads that wait for ever.  With KEEPS in the
// environment the block keeps its first plan.
#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __align__(n) alignas(n)
struct Index {
  int x;
};
struct int4 {
  int x, y, z, w;
};
static Index blockIdx, gridDim, threadIdx;
using std::max;
using std::min;
static uint64_t __shfl_up_sync(unsigned, uint64_t value, int) { return value; }
static void __syncthreads() {}
static void __syncwarp() {}
static size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }

// What touches barriers or copies is replaced; the originals keep other names.
#define barrier_init device_barrier_init
#define barrier_init_fence device_barrier_init_fence
#define barrier_arrive device_barrier_arrive
#define barrier_arrive_after device_barrier_arrive_after
#define barrier_expect device_barrier_expect
#define barrier_expect_early device_barrier_expect_early
#define barrier_end device_barrier_end
#define barrier_wait device_barrier_wait
#define barrier_arrive_at device_barrier_arrive_at
#define copy_box device_copy_box
#define copy_box_to_all device_copy_box_to_all
#define prefetch_box device_prefetch_box
#define wait_for_previous device_wait_for_previous
#include "ptx/copy.cuh"
#include "ptx/dependents.cuh"
#undef barrier_init
#undef barrier_init_fence
#undef barrier_arrive
#undef barrier_arrive_after
#undef barrier_expect
#undef barrier_expect_early
#undef barrier_end
#undef barrier_wait
#undef barrier_arrive_at
#undef copy_box
#undef copy_box_to_all
#undef prefetch_box
#undef wait_for_previous

[[noreturn]] static void fail(const std::string& what) {
  std::printf("wrong: %s\n", what.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

// An mbarrier as the PTX manual describes it, and copies that arrive in any order.
struct Barrier {
  int count = 0, pending = 0;
  long bytes = 0;
  unsigned phase = 0;
};
struct Copy {
  void* to;
  std::vector<long> what;
  uint64_t* barrier;
  long bytes;
};
static std::mutex lock;
static std::condition_variable changed;
static std::map<uint64_t*, Barrier> barriers;
static std::map<void*, std::vector<long>> contents;
static std::vector<Copy> under_way;
static std::map<const CUtensorMap*, long> box_bytes;
static bool previous_has_ended = false, all_done = false;
static std::mt19937 dice;

static Barrier& of(uint64_t* b) {
  if (!barriers.count(b)) fail("a barrier that is not set up");
  return barriers[b];
}
static void settle(Barrier& b) {
  if (b.pending < 0) fail("more arrivals than a phase has");
  if (b.pending == 0 && b.bytes == 0) b.pending = b.count, b.phase ^= 1;
  changed.notify_all();
}

namespace w4afp8::ptx {
void barrier_init(uint64_t* b, uint32_t arrivals) {
  std::lock_guard guard(lock);
  if (barriers.count(b)) fail("a barrier set up twice");
  barriers[b] = {static_cast<int>(arrivals), static_cast<int>(arrivals)};
}
void barrier_end(uint64_t* b) {
  std::lock_guard guard(lock);
  if (of(b).bytes != 0) fail("a barrier ends with bytes under way");
  barriers.erase(b);
}
void barrier_init_fence() {}
void barrier_arrive(uint64_t* b) {
  std::lock_guard guard(lock);
  --of(b).pending;
  settle(of(b));
}
void barrier_arrive_after(uint64_t* b, uint32_t) { barrier_arrive(b); }
void barrier_expect(uint64_t* b, uint32_t bytes) {
  std::lock_guard guard(lock);
  of(b).bytes += bytes;
  --of(b).pending;
  settle(of(b));
}
void barrier_expect_early(uint64_t* b, uint32_t bytes) {
  std::lock_guard guard(lock);
  of(b).bytes += bytes;
}
void barrier_wait(uint64_t* b, uint32_t parity) {
  std::unique_lock guard(lock);
  if (!changed.wait_for(guard, std::chrono::seconds(20), [&] { return of(b).phase != parity; })) fail("it hangs");
}
void barrier_arrive_at(uint64_t*, uint32_t) { fail("no clusters here"); }
static void copy(void* to, const CUtensorMap* map, std::vector<long> what, uint64_t* b) {
  std::lock_guard guard(lock);
  under_way.push_back({to, std::move(what), b, box_bytes.at(map)});
  changed.notify_all();
}
void copy_box(void* to, const CUtensorMap* map, int c0, uint64_t* b, uint64_t) { copy(to, map, {c0}, b); }
void copy_box(void* to, const CUtensorMap* map, int c0, int c1, int c2, uint64_t* b, uint64_t) {
  copy(to, map, {c0, c1, c2, box_bytes.at(map)}, b);
}
void copy_box(void* to, const CUtensorMap* map, int c0, int c1, int c2, int c3, uint64_t* b, uint64_t) {
  copy(to, map, {c0, c1, c2, c3}, b);
}
void copy_box_to_all(void*, const CUtensorMap*, int, int, int, uint64_t*, uint16_t, uint64_t) { fail("no clusters here"); }
template <class... Where>
void prefetch_box(const CUtensorMap* map, Where...) {
  box_bytes.at(map);
}
}  // namespace w4afp8::ptx

namespace w4afp8 {
void wait_for_previous() {
  std::unique_lock guard(lock);
  if (!changed.wait_for(guard, std::chrono::seconds(20), [] { return previous_has_ended; })) fail("it hangs");
}
}  // namespace w4afp8

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
  std::thread engine([] {
    std::unique_lock guard(lock);
    while (true) {
      changed.wait(guard, [] { return all_done || !under_way.empty(); });
      if (under_way.empty()) return;
      if (dice() % 2) {  // later
        guard.unlock();
        std::this_thread::sleep_for(std::chrono::microseconds(dice() % 200));
        guard.lock();
      }
      const size_t i = dice() % under_way.size();
      const Copy copy = under_way[i];
      under_way.erase(under_way.begin() + i);
      contents[copy.to] = copy.what;
      of(copy.barrier).bytes -= copy.bytes;
      settle(of(copy.barrier));
    }
  });
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
