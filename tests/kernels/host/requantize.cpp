// Follows requantize_groups of requantize.cuh on the CPU: all blocks, a warp of each, over one layer.
//
//   requantize (as layer.h says) STATIC < ids
//
// STATIC: the scale is given, not each row's own.  A value's byte says where it stands, so whatever is written can be
// told; groups are read when the run they belong to has been waited for, and counted when their words are there.
// Prints `block groups` for every block, `run groups` for every run, as they were counted, and `all groups`, or what is
// wrong.  Of few pairs nobody counts: rows are their own signal.
#include <type_traits>

#include "numbers.h"
#include "layer.h"

// The originals keep other names.
#define await device_await
#define add device_add
#define leave_word device_leave_word
#include "sm90/moe/layer/signal.cuh"
#undef await
#undef add
#undef leave_word

static const float* first_activated;
static int inner, awaited[32];  // by each lane: the run
static bool words_are_fenced;
static int counted;
static std::vector<int> run_row, run_end_row;

template <class T>
T __ldcg(const T* place) {
  if constexpr (std::is_same_v<T, float4>) {
    const long row = (reinterpret_cast<const float*>(place) - first_activated) / inner;
    const int run = awaited[threadIdx.x];
    if (run < 0 || row < run_row[run] || row >= run_end_row[run]) fail("a row is read that may not be there");
  }
  return *place;
}
inline void __threadfence() { words_are_fenced = true; }

namespace w4afp8::moe::layer {
static const uint32_t *activated_signal, *run_signal;
static void (*look)(int run);  // at what is written of a run

void await(const uint32_t* word, uint32_t value) {
  const long run = word - activated_signal;
  if (run < 0 || run >= static_cast<long>(run_row.size())) fail("another word is waited for");
  if (static_cast<int>(value) != inner / 64) fail("a run has one 64-column piece for each 64 columns");
  if (run < awaited[threadIdx.x]) fail("runs are waited for out of their order");
  awaited[threadIdx.x] = static_cast<int>(run);
  words_are_fenced = false;
}
void add(uint32_t* word) {
  if (!words_are_fenced) fail("a group is counted without a fence");
  if (word >= run_signal && word < run_signal + run_row.size()) look(static_cast<int>(word - run_signal)), ++counted;
  ++*word;
}
void leave_word(uint32_t* place, uint32_t v) {
  if (*place != kAbsent) fail("a word is left twice");
  *place = v;
}
}  // namespace w4afp8::moe::layer
#include "sm90/moe/layer/requantize.cuh"

static uint8_t value(int row, int col) { return static_cast<uint8_t>(1 + (row * 131 + col * 7 + col / 128 * 29) % 251); }
static float scale_of(int row, bool fixed) { return fixed ? 0.25f : static_cast<float>(1 << row % 5); }
constexpr uint8_t kUntouched = 0xff;

static Layer layer;
static std::vector<int> place_of;  // of each row, in q

// How many groups of a run are whole; fails where a byte is another's.
static int whole_groups(int run) {
  int found = 0;
  for (int group = 0; group < inner / 128; ++group) {
    int here = 0;
    for (int row = run_row[run]; row < run_end_row[run]; ++row) {
      for (int col = group * 128; col < (group + 1) * 128; ++col) {
        const uint8_t byte = layer.q[kDown][q_offset(place_of[row], inner / 128, col)];
        if (byte != kUntouched && byte != value(row, col)) fail("another value's byte");
        here += byte != kUntouched;
      }
    }
    found += here == 128 * (run_end_row[run] - run_row[run]);
  }
  return found;
}

template <class C>
void follow(const Problem& problem, bool fixed) {
  const typename C::Plan& plan = plan_of<C>(problem);
  layer = problem.layer;
  inner = layer.inner;
  int rows = 0, eights = 0;
  for (int slot = 0; slot < plan.active; ++slot) {
    for (int row = 0; row < plan.rows[slot]; ++row, ++rows) {
      place_of.push_back(eights * 8 + row);
      if (row % C::kTokens == 0) run_row.push_back(rows), run_end_row.push_back(rows);
      ++run_end_row.back();
    }
    eights += (plan.rows[slot] + 7) / 8;
  }
  static typename C::Signals signals{};
  static FewRow few[C::kFew ? kFewPairs : 1];
  std::memset(few, 0xff, sizeof few);
  std::vector<float4> activated(static_cast<size_t>(rows) * inner / 4 + 1);
  std::vector<uint8_t> q(static_cast<size_t>(eights) * 8 * inner, kUntouched);
  std::vector<float> scale(eights * 8, -1.0f);
  const float given = scale_of(0, true);
  layer.activated = reinterpret_cast<float*>(activated.data()), first_activated = layer.activated;
  layer.q[kDown] = q.data(), layer.q_scale[kDown] = scale.data();
  layer.static_scale[kDown] = fixed ? &given : nullptr;
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < inner; ++col) layer.activated[row * inner + col] = value(row, col) * scale_of(row, fixed);
    signals.largest[row] = __float_as_uint(scale_of(row, fixed) * 448.0f);
  }
  activated_signal = signals.activated, run_signal = signals.run_ready;
  look = [](int run) {
    if (whole_groups(run) <= static_cast<int>(run_signal[run])) fail("a group is counted that is not there");
  };
  for (int b = 0; b < gridDim.x; ++b) {
    blockIdx.x = b;
    counted = 0;
    std::fill_n(awaited, 32, -1);
    run_block(32, [&] { requantize_groups<C>(layer, plan, signals, few); });
    if (!C::kFew) std::printf("block %d\n", counted);
  }
  for (int row = 0; row < rows; ++row) {
    const int place = place_of[row];
    const float found = C::kFew ? __uint_as_float(few[row].scale[kDown]) : scale[place];
    if (found != scale_of(row, fixed)) fail("a row's scale");
    scale[place] = -1.0f;
    for (int col = 0; col < inner; ++col) {
      uint8_t& byte = q[q_offset(place, inner / 128, col)];
      const uint8_t* own = reinterpret_cast<const uint8_t*>(few[row % (C::kFew ? kFewPairs : 1)].activated);
      if ((C::kFew ? own[col] : byte) != value(row, col)) fail("a value that is not requantized");
      byte = kUntouched;
    }
  }
  if (std::count(q.begin(), q.end(), kUntouched) != static_cast<long>(q.size())) fail("bytes of no row");
  if (std::count(scale.begin(), scale.end(), -1.0f) != static_cast<long>(scale.size())) fail("a scale of no row");
  if (C::kFew) return;
  for (size_t run = 0; run < run_row.size(); ++run) std::printf("run %u\n", signals.run_ready[run]);
  std::printf("all %u\n", signals.groups_ready);
}

int main(int count, char** words) {
  const Problem problem(count, words);
  with_kernel(problem, [&]<class C> { follow<C>(problem, problem.more[0] != 0); });
}
