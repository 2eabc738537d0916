// The whole layer in one launch: what it is asked to do, and how a block is built.
//
// Names: a pair is one (token, choice); a row is a pair's place among the local pairs sorted by expert; a run is up to
// kTokens rows of one expert that a tile multiplies together; block8 is a row's place in eights, every expert beginning
// a new eight.
#pragma once
#include <cstdint>
#include <type_traits>

#include "../../../ptx/racecheck.h"
#include "../../grouped_gemm/config.h"
#include "../launch.h"

namespace w4afp8::moe::layer {

using grouped_gemm::kSharedLimit;
using grouped_gemm::kTileBytes;
using grouped_gemm::kTileCols;
using grouped_gemm::kTileRows;
constexpr int kStageGroups = 2;      // scale groups along K of one pipeline stage
constexpr int kConsumers = 4;        // warpgroups that multiply
constexpr int kConsumerThreads = 128 * kConsumers;
constexpr int kThreads = kConsumerThreads + 128;  // warps: one for weights, one for x, one plans, one requantizes
constexpr int kSegments = 4;         // tiles that are planned ahead
constexpr int kInFlight = 2;         // stages of weights asked for and not there yet
constexpr int kTailStages = 16;      // of the second phase, a block: whole tiles, handed out to who has done its share,
constexpr int kTailPart = 3;         // and no more than one in so many
constexpr int kAhead = 3;            // stages fetched into L2 while a phase's first ring is full and waits
constexpr int kMaxExperts = 512;     // what the plan in shared memory holds
constexpr int kMaxPairs = 4096;
constexpr int kFewPairs = 64;        // what the kernel for few pairs holds, and sizes
constexpr int kFewHidden = 8192, kFewInner = 2048;
constexpr int kMaxBlocks = 256;      // multiprocessors

enum Phase : int { kGateUp = 0, kDown = 1 };

// One of the two weights: sm90 layout [experts, rows/64, cols/128, ...].
struct Weight {
  const uint8_t* codes;
  const void* scale;  // bfloat16 or float
  bool scale_float;
  int row_blocks;     // rows / 64
  int groups;         // cols / 128
};

struct Layer {
  Routing routing;            // ids; rows: [pairs], for the weighted sum; offsets unused
  const void* x;              // [tokens, hidden], 16 bit
  InType type;                // of x, of every rounding to 16 bit, of out
  int hidden, inner;
  Weight weight[2];           // gate_up [2 * inner x hidden], down [hidden x inner]
  int row_tiles[2];           // a gate_up tile is two row blocks of gate and the two of up, a down tile four row blocks
  int stages[2];              // of a tile, and of a row block, along K
  const float* static_scale[2];  // of the activations that enter each weight, or null: per row
  Swiglu swiglu;
  const float* weights;       // [tokens, top_k]
  float factor;
  uint32_t minus_one;         // for `unpack`
  void* out;                  // [tokens, hidden]
  // Scratch.  q: e4m3 by block8, [block8][cols/128][8 rows][128], swizzled as wgmma reads it; scale: [block8][8].
  uint8_t* q[2];
  float* q_scale[2];
  float* activated;           // [pairs, inner]
  void* down;                 // [pairs, hidden], 16 bit
};

// What so many pairs can make: runs, and experts with rows.
constexpr int most_runs(int pairs) {
  const int eights = pairs / 8 + kMaxExperts;
  return pairs < eights ? pairs : eights;
}
constexpr int most_active(int pairs) { return pairs < kMaxExperts ? pairs : kMaxExperts; }

// Signals between blocks.  Two sets take turns: a launch uses one and clears the other for the next launch.
template <int kPairs>
struct Signals {
  uint32_t tokens_ready;                                  // parts of tokens quantized
  uint32_t groups_ready;                                  // of 128 columns of a run, requantized
  uint32_t tiles_taken;                                   // of those that are handed out
  uint32_t blocks_done;                                   // blocks whose tiles are stored
  uint32_t activated[most_runs(kPairs)];                  // 64-column pieces of a run's activation
  uint32_t run_ready[most_runs(kPairs)];                  // its requantized groups
  uint32_t largest[kPairs];                               // activated value of a row: the bits of a float >= 0
};
template <int kPairs>
struct alignas(16) State {
  uint32_t launches;  // decides the set
  uint32_t rows[2];   // of few pairs: what of a set its last launch may have written
  uint32_t pad[29];
  Signals<kPairs> signals[2];
};

// Few pairs have a kernel of their own, in which values are their own signal (signal.cuh): nobody fences for them, and
// whoever needs one asks for it.  Its scratch is its own, too, so what it leaves there only it finds.
//
// A row on its way, from x and between the GEMMs.  Two sets take turns, as the signals do: a row has many readers and
// none knows who is the last.
struct alignas(16) FewRow {
  uint32_t x[kFewHidden / 4];          // e4m3
  uint32_t activated[kFewInner / 4];
  uint32_t largest[kFewInner / 16];    // floats: the largest activated value of sixteen columns
  uint32_t scale[2];                   // floats: of x, of activated
};
using FewRows = FewRow[kFewPairs];
constexpr int kFewPitch = sizeof(FewRow) / 4;
// Activated values, floats, and 16-bit products of the second GEMM: in one set, because each has one reader.
using FewValues = uint32_t[kFewPairs][kFewInner];
using FewDown = uint16_t[kFewPairs * kFewHidden];
struct Few {
  FewRows* rows;
  FewValues* values;
  FewDown* down;
};

// Which experts have rows, and where.
template <int kPairs>
struct Plan {
  int active, runs;                    // experts with rows; runs over all of them
  uint32_t count[kMaxExperts];         // rows, by expert; then scratch of find_rows
  uint16_t expert_row[kMaxExperts];    // first row, by expert
  uint16_t expert_block8[kMaxExperts];
  alignas(16) uint16_t id[kPairs];     // local expert of each pair, `experts` for none
  // by slot, the active experts in order
  uint16_t expert[most_active(kPairs)];
  uint16_t rows[most_active(kPairs)];
  uint16_t first_row[most_active(kPairs)];
  uint16_t block8[most_active(kPairs)];
  uint16_t run_end[most_active(kPairs)];
  uint64_t warp_total[kThreads / 32];
};

// A tile, or what of its stages along K this block multiplies.
struct alignas(16) Segment {
  Phase phase;
  int stages;                 // 0: there is nothing more to do
  int row_tile;               // one row block for each consumer
  int weight_stage;           // where the first consumer's weights begin, in stages from the first expert's
  int run;                    // over all experts
  int first_row, block8, tokens;
  int first_stage;
  int peers;                  // of an owner: how many blocks after this one have the rest of the tile
  bool owner;
  bool shared;                // other runs read the same weights
};

// Shared memory of few pairs only.
struct FewShared {
  uint64_t rows_known;
  int16_t rows[kFewPairs];  // of each pair, or -1
};
// And of the build for the race checker.
struct Checked {
  uint64_t gate_read[kConsumers / 2];
};
struct Nothing {};

template <int kTokens_, int kStages_, bool kFew_ = false>
struct Config {
  static constexpr int kTokens = kTokens_;  // wgmma's N
  static constexpr int kStages = kStages_;
  static constexpr bool kFew = kFew_;  // pairs
  static constexpr int kPairs = kFew ? kFewPairs : kMaxPairs;  // as many at most
  using Signals = layer::Signals<kPairs>;
  using State = layer::State<kPairs>;
  using Plan = layer::Plan<kPairs>;
  static constexpr bool kMovesRegisters = kTokens > 8;  // from the loading warps to the consumers
  static constexpr int kLoaderRegisters = 64;
  static constexpr int kConsumerRegisters = (65536 / kThreads / 8 * 8 * (kConsumers + 1) - kLoaderRegisters) / kConsumers / 8 * 8;

  struct Stage {
    alignas(1024) uint8_t x[kStageGroups][kTokens * kTileCols];            // e4m3, 128-byte swizzle
    alignas(128) uint8_t codes[kConsumers][kStageGroups * kTileBytes];
    alignas(128) uint8_t scale[kConsumers * kStageGroups * kTileRows * 4];  // bfloat16 or float, packed
    float x_scale[kTokens];
  };
  struct Smem {
    Stage stage[kStages];
    uint32_t gate[kConsumers / 2][kTokens / 4 * 128];            // rounded gate products, two tokens a word
    alignas(16) uint16_t out[kConsumers][4][kTokens * 16];       // rounded down products on their way, of each warp
    uint64_t weights_full[kStages], x_full[kStages], empty[kStages];
    uint64_t segment_full[kSegments], segment_empty[kSegments];
    Segment segment[kSegments];
    float warp_max[kConsumerThreads / 32];
    std::conditional_t<kFew, FewShared, Nothing> few;
    int token_rows[kMaxTopK];  // of the token at hand: place of each choice in q (of few pairs: its row), or -1
    uint32_t set;
    Plan plan;
    [[no_unique_address]] std::conditional_t<ptx::kForRacecheck, Checked, Nothing> checked;
  };
  static_assert(!kFew || kTokens == 8, "rows of few pairs lie in a stage as one swizzle atom a group");
  static_assert(kTokens % 8 == 0, "x is whole swizzle atoms of eight rows");
  static_assert(sizeof(Smem) <= kSharedLimit, "this kernel does not fit one SM90 block");
};

template <class C>
struct Arguments {
  Layer layer;
  typename C::State* state;
  uint4* partial;  // [2 phases][blocks][consumers][tokens / 8][128], absent between launches
  Few few;         // of few pairs, absent where nothing was written
};

}  // namespace w4afp8::moe::layer
