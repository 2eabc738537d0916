// All threads of a block, on one: each runs until it meets the others, in an order that is drawn anew every time, so
// whoever does not wait where it should finds what is not yet there.
#pragma once
#include <ucontext.h>

#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "device.h"

inline std::mt19937 dice;

// Threads that wait for each other: the block's, or a warp's.
struct Meeting {
  int size = 0, here = 0, times = 0;
};
struct Fiber {
  static constexpr size_t kStack = 1 << 16;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};
inline std::vector<Fiber> fibers;
inline std::vector<Meeting> warps;
inline Meeting block;
inline std::vector<uint64_t> shown;  // by each thread to its warp
inline ucontext_t outside;
inline bool moved;
inline void (*thread_body)(void*);
inline void* thread_argument;

inline void step_aside() { swapcontext(&fibers[threadIdx.x].context, &outside); }
inline void meet(Meeting& all) {
  const int before = all.times;
  if (++all.here == all.size) all.here = 0, ++all.times;
  moved = true;
  while (all.times == before) step_aside();
}
inline void __syncthreads() { meet(block); }
inline void __syncwarp() { meet(warps[threadIdx.x / 32]); }

// What `use` makes of the values that the warp's threads show.
template <class T, class Use>
T exchange(T value, Use&& use) {
  shown[threadIdx.x] = value;
  __syncwarp();
  const T found = use(&shown[threadIdx.x / 32 * 32]);
  __syncwarp();
  return found;
}
inline uint64_t __shfl_up_sync(unsigned, uint64_t value, int step) {
  const int lane = threadIdx.x % 32;
  return exchange(value, [&](const uint64_t* all) { return lane < step ? value : all[lane - step]; });
}
inline uint32_t __reduce_add_sync(unsigned, uint32_t value) {
  return exchange(value, [](const uint64_t* all) { return static_cast<uint32_t>(std::accumulate(all, all + 32, 0ull)); });
}
inline uint32_t atomicAdd(uint32_t* word, uint32_t value) {
  const uint32_t before = *word;
  *word += value;
  return before;
}

inline void begin_thread() {
  thread_body(thread_argument);
  fibers[threadIdx.x].done = moved = true;
  step_aside();
}

// Runs `body` as every thread of a block.
template <class Body>
void run_block(int threads, Body body) {
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(threads);
  shown.assign(threads, 0);
  warps.assign(threads / 32, {32});
  block = {threads};
  thread_body = [](void* it) { (*static_cast<Body*>(it))(); };
  thread_argument = &body;
  std::vector<int> left(threads);
  std::iota(left.begin(), left.end(), 0);
  for (int i : left) {
    Fiber& f = fibers[i];
    f.done = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = Fiber::kStack;
    makecontext(&f.context, begin_thread, 0);
  }
  while (!left.empty()) {
    std::shuffle(left.begin(), left.end(), dice);
    moved = false;
    for (int i : left) {
      threadIdx.x = i;
      swapcontext(&outside, &fibers[i].context);
    }
    if (!moved) fail("it hangs");
    std::erase_if(left, [](int i) { return fibers[i].done; });
  }
}
