// The whole layer in one launch: what it is asked to do, and how a block is built.
//
// Names: a pair is one (token, choice); a row is a pair's place among the local pairs sorted by expert; a run is up to
// kTokens rows of one expert that a tile multiplies together; block8 is a row's place in eights, every expert beginning
// a new eight.
#pragma once
#include <cstdint>

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
constexpr int kThreads = kConsumerThreads + 128;  // a warp loads weights, one activations, one plans, one clears
constexpr int kSegments = 4;         // tiles that are planned ahead
constexpr int kInFlight = 2;         // stages of weights asked for and not there yet
constexpr int kMaxExperts = 512;     // what the plan in shared memory holds
constexpr int kMaxPairs = 4096;
constexpr int kMaxRuns = 1024;       // <= kMaxPairs / 8 + kMaxExperts
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
  int stages[2];              // of a tile along K
  const float* static_scale[2];  // of the activations that enter each weight, or null: per row
  Swiglu swiglu;
  const float* weights;       // [tokens, top_k]
  float factor;
  void* out;                  // [tokens, hidden]
  // Scratch.  q: e4m3 by block8, [block8][cols/128][8 rows][128], swizzled as wgmma reads it; scale: [block8][8].
  uint8_t* q[2];
  float* q_scale[2];
  float* activated;           // [pairs, inner]
  void* down;                 // [pairs, hidden], 16 bit
};

// Signals between blocks.  Two sets take turns: a launch uses one and clears the other for the next launch.
struct Signals {
  uint32_t tokens_ready;                                  // parts of tokens quantized
  uint32_t blocks_done;                                   // blocks whose tiles are stored
  uint32_t partial_ready[2][kMaxBlocks * kConsumers];     // a block's partial sums of a phase
  uint32_t activated[kMaxRuns];                           // 64-column pieces of a run's activation
  uint32_t run_ready[kMaxRuns];                           // its requantized rows
  uint32_t largest[kMaxPairs];                            // activated value of a row: the bits of a float >= 0
};
struct State {
  uint32_t launches;  // decides the set
  uint32_t pad[31];
  Signals signals[2];
};

// Which experts have rows, and where.
struct Plan {
  int active, runs;                    // experts with rows; runs over all of them
  uint32_t count[kMaxExperts];         // rows, by expert
  uint16_t expert_row[kMaxExperts];    // first row, by expert
  uint16_t expert_block8[kMaxExperts];
  uint16_t id[kMaxPairs];              // local expert of each pair, `experts` for none
  // by slot, the active experts in order
  uint16_t expert[kMaxExperts];
  uint16_t rows[kMaxExperts];
  uint16_t first_row[kMaxExperts];
  uint16_t block8[kMaxExperts];
  uint16_t run_end[kMaxExperts];
  uint64_t warp_total[kThreads / 32];
};

// A tile, or what of its stages along K this block multiplies.
struct alignas(16) Segment {
  Phase phase;
  int stages;                 // 0: there is nothing more to do
  int expert, row_tile;       // a row tile is one row block for each consumer
  int run;                    // over all experts
  int first_row, block8, tokens;
  int first_stage;
  int end_unit;               // of the whole tile, in the phase's line of work; 0 when this block has all of it
  bool owner;
  bool shared;                // other runs read the same weights
};

template <int kTokens_, int kStages_>
struct Config {
  static constexpr int kTokens = kTokens_;  // wgmma's N
  static constexpr int kStages = kStages_;
  static constexpr bool kMovesRegisters = kTokens > 8;  // from the loading warps to the consumers
  static constexpr int kLoaderRegisters = 64;
  static constexpr int kConsumerRegisters = (65536 / kThreads / 8 * 8 * (kConsumers + 1) - kLoaderRegisters) / kConsumers / 8 * 8;

  struct Stage {
    alignas(1024) uint8_t x[kStageGroups][kTokens * kTileCols];            // e4m3, 128-byte swizzle
    alignas(128) uint8_t codes[kConsumers][kStageGroups * kTileBytes];
    alignas(128) uint8_t scale[kConsumers][kStageGroups * kTileRows * 4];  // bfloat16 or float, packed
    float x_scale[kTokens];
  };
  struct Smem {
    Stage stage[kStages];
    uint32_t gate[kConsumers / 2][kTokens / 4 * 128];            // rounded gate products, two tokens a word
    alignas(16) uint16_t out[kConsumers][kTokens * (kTileRows + 8)];  // rounded down products on their way
    uint64_t weights_full[kStages], x_full[kStages], empty[kStages];
    uint64_t segment_full[kSegments], segment_empty[kSegments];
    Segment segment[kSegments];
    float warp_max[kConsumerThreads / 32];
    int token_rows[kMaxTopK];  // of the token at hand: place of each choice in q, or -1
    uint32_t last[kConsumers];
    uint32_t set;
    Plan plan;
  };
  static_assert(kTokens % 8 == 0, "x is whole swizzle atoms of eight rows");
  static_assert(sizeof(Smem) <= kSharedLimit, "this kernel does not fit one SM90 block");
};

}  // namespace w4afp8::moe::layer
