// Barriers in shared memory and the copy engine, modelled: barriers count as the PTX manual says, copies arrive in any
// order, and whoever waits for what never comes says so.
#pragma once
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "alone.h"

// The originals keep other names.
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

// A thread of its own: lets the copies under way arrive until all is done.
inline std::thread copy_engine() {
  return std::thread([] {
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
}
