// What a block decides before its loop: tile shape, ring of stages, shared memory.
#pragma once
#include <cstdint>

namespace w4afp8::grouped_gemm {

constexpr int kTileRows = 64;        // output rows of one warpgroup: wgmma's M
constexpr int kTileCols = 128;       // inputs of one step: one scale group, one 128-byte swizzled row of x
constexpr int kTileBytes = 4096;     // codes of one tile
constexpr int kMostCounts = 3;       // token counts of one kernel
constexpr int kManyTokens = 96;      // from here on results leave by the copy engine
constexpr int kStoreTokens = 24;     // of a copy, while so many are left to a warp
constexpr int kEarlyStages = 2;      // of weights that may yet be written: into L2 while the kernel before runs
constexpr int kMaxExperts = 512;     // what the plan in shared memory holds
constexpr int kSearched = 8;         // experts that a walk looks at together
constexpr int kSegments = 4;         // planned ahead of the consumers
constexpr int kSharedLimit = 232448; // of one SM90 block
constexpr int kSharedOfBlock = 1024; // that each block on a multiprocessor costs beside its own

// The token counts (wgmma's N) a kernel can run a tile with, ascending; a tile takes the smallest that holds it.
template <int... kCounts>
struct TokenCounts {
  static constexpr int kNumber = sizeof...(kCounts);
  static constexpr int kAll[] = {kCounts...};
  static constexpr int kMax = [] {
    int most = 0;
    ((most = kCounts > most ? kCounts : most), ...);
    return most;
  }();
  // Which count, and the count itself, a tile of so many tokens takes.
  __device__ __forceinline__ static int index(int tokens) { return ((tokens > kCounts ? 1 : 0) + ...); }
  __device__ __forceinline__ static int count(int tokens) {
    int found = kMax;
    bool done = false;
    ((!done && tokens <= kCounts ? (done = true, found = kCounts) : 0), ...);
    return found;
  }
  template <class F>
  __device__ __forceinline__ static void dispatch(int tokens, F&& run) {
    bool done = false;
    ((!done && tokens <= kCounts ? (done = true, run.template operator()<kCounts>()) : void()), ...);
  }
};

// What a block works on at once: a tile, or a part of it along K.
struct alignas(16) Segment {
  int row_tile, first_row, tokens;  // tokens: rows of x
  int first_group, groups;          // along K; no groups: there is nothing for this block
  int first_peer, end_peer;         // teams whose partial sums complete this tile; empty when none do
  int owner;                        // of the tile: not a peer that leaves partial sums
  int last;                         // is it this block's last?
  int shared;                       // do other tiles read the same weights?
  int expert;
};

// Experts that have tokens, in order, with the running number of tiles.
struct ExpertPlan {
  int active;
  int tiles;
  int expert[kMaxExperts];
  int first_row[kMaxExperts];
  int rows[kMaxExperts];
  int tile_end[kMaxExperts + kSearched];  // no tile is beyond the last ones
  uint64_t warp_total[32];
};

// The type of the weight's scales: known to the compiler, or asked for in every group.
enum class Scales { kBFloat16, kAny };

// What a file in instances/ may leave unsaid.  It says, too: Tokens; kConsumers, warpgroups that multiply, 64 output
// rows each; kStages; kStageGroups, scale groups along K of a stage.
struct Defaults {
  static constexpr bool kGroupScale = false;             // activation scale per token and group
  static constexpr int kProducts = 1;                    // sets of products: of two, one is promoted while one is made
  static constexpr int kCluster = 1;                     // blocks that share x, each with its own rows of the weight
  static constexpr Scales kScales = Scales::kBFloat16;
  static constexpr int kRoom = 1;                        // blocks that a multiprocessor has room for
  static constexpr int kBlocks = 1;                      // blocks it gets; what is left is for the kernel after
};

template <class S>
struct Config : S {
  using typename S::Tokens;
  using S::kConsumers, S::kStages, S::kStageGroups, S::kGroupScale, S::kProducts, S::kCluster, S::kScales;
  using S::kRoom, S::kBlocks;
  static constexpr int kScaleBytes = kScales == Scales::kAny ? 4 : 2;  // of one, at most
  static constexpr int kMaxTokens = Tokens::kMax;
  static constexpr bool kStoresByCopy = kMaxTokens >= kManyTokens;
  static constexpr bool kFlags = kMaxTokens >= kManyTokens;  // of partial sums; else they are their own signal
  static constexpr int kThreads = 128 * (kConsumers + 1);   // the last warpgroup plans and loads
  // Registers a thread: the block starts with an equal share, the loading warpgroup gives most of its own away.
  static constexpr int kShare = 65536 / (kThreads * kRoom) / 8 * 8;
  static constexpr bool kMovesRegisters = true;
  static constexpr int kLoaderRegisters = kConsumers > 3 ? 32 : 40;
  static constexpr int kConsumerRegisters = (kShare * (kConsumers + 1) - kLoaderRegisters) / kConsumers / 8 * 8;
  static constexpr int kScaleSlots = 2;                     // tiles whose token scales are here or on their way
  static constexpr int kScaleBox = kMaxTokens + 4;  // scales of a tile that begins at any row, copied from a multiple of 4

  struct Smem {
    // e4m3, 128-byte swizzle: [groups][the tile's token count][128], so what follows the last group is not written
    alignas(1024) uint8_t x[kStages][kStageGroups * kMaxTokens * kTileCols];
    alignas(1024) uint8_t out[kConsumers][kMaxTokens * kTileRows * 2];               // 16-bit results on their way, swizzled
    alignas(128) uint8_t codes[kStages][kConsumers][kStageGroups * kTileBytes];      // sm90 layout
    struct alignas(128) StageScale {
      uint8_t bytes[kConsumers * kStageGroups * kTileRows * kScaleBytes];            // packed
    } scale[kStages];
    alignas(128) float x_scale[kScaleSlots][(kScaleBox + 31) / 32 * 32];             // of this tile and the next
    uint64_t full[kStages], empty[kStages];
    uint64_t scales_full[kScaleSlots], scales_empty[kScaleSlots];
    ExpertPlan plan;
    Segment segment[kSegments];
    uint64_t segment_full[kSegments], segment_empty[kSegments];
    int planned, loaded;                             // segments, and stages of weights, while the kernel before runs
    uint64_t peer_free[kCluster > 1 ? kStages : 1];  // has the other block of the cluster left this stage?
  };
  static_assert(kStageGroups == 1 || kStageGroups == 2, "the consumer alternates between two sets of registers");
  static_assert(kCluster == 1 || (kCluster == 2 && kStageGroups == 2), "each block of a pair loads one group of a stage");
  static_assert(Tokens::kNumber <= kMostCounts, "Arguments has a map for each token count");
  static_assert(kMaxTokens % 8 == 0, "x is whole swizzle atoms of eight rows");
  static_assert(sizeof(Smem) <= (kSharedLimit + kSharedOfBlock) / kRoom - kSharedOfBlock, "this schedule does not fit");
  static_assert(kBlocks <= kRoom, "no more blocks than there is room for: they wait for each other");
};

}  // namespace w4afp8::grouped_gemm
