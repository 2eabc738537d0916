// W4AFP8 grouped GEMM for SM90.  out[t, n] = x_scale[t] * sum_g weight_scale[n, g] * sum_k x[t, k] * code[n, k].
//
// Operands are swapped: the weights are wgmma's A (64 rows), made into e4m3 in registers on the way; the tokens are its
// N (8 .. 160), read from shared memory.  One thread streams codes, scales and x through a ring of stages with the bulk
// copy engine; each consumer warpgroup owns 64 output rows.  Every 128 inputs, one scale group, the product is promoted:
// acc += weight_scale * product, in float32.
#pragma once
#include "../../ptx/copy.cuh"
#include "../../ptx/wgmma.cuh"
#include "../overlap.cuh"
#include "config.h"
#include "dequantize.cuh"
#include "epilogue.cuh"
#include "params.h"
#include "schedule.cuh"

namespace w4afp8::grouped_gemm {

struct Arguments {
  CUtensorMap x_map;       // [groups][tokens][128]
  CUtensorMap codes_map;   // [experts][row blocks][32 * groups][128]
  CUtensorMap scale_map;   // [experts][row blocks][64 * groups]
  CUtensorMap x_scale_map; // [tokens], used when the scale is per token
  Params p;
  float* partial;    // [blocks][consumers][tokens/2][128]
  uint32_t* ready;   // [blocks][consumers], zero between launches
  // Do consumers fetch a tile's first groups while they multiply the last of the tile before?  It saves the start of
  // every tile; but where memory is slower than multiplying, waiting for them keeps a finished tile from its end.
  bool looks_ahead;
  uint32_t upper_bytes, lower_bytes;  // which bytes of two words of scales are the upper row's float, and the lower's
};

template <int kSlots>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kSlots) stage = 0, phase ^= 1;
  }
};

// One thread: keeps the ring full, three copies a stage.  Row blocks beyond the expert's last are filled with zeros.
template <class C>
__device__ void produce(const Arguments& args, typename C::Smem& smem) {
  const Params& p = args.p;
  const int bytes = C::kStageGroups * (C::kConsumers * (kTileBytes + kTileRows * (p.weight_scale_float ? 4 : 2)) +
                                       C::kMaxTokens * kTileCols);
  Walk walk(smem.plan, p, C::kMaxTokens, C::kStageGroups);
  const bool token_scales = p.x_scale_stride == 1 && !C::kGroupScale;
  Ring<C::kStages> ring;
  Ring<2> tile;
  Segment s;
  while (walk.next(s)) {
    if (token_scales && s.owner) {
      ptx::barrier_wait(&smem.scales_empty[tile.stage], tile.phase ^ 1);
      ptx::barrier_expect(&smem.scales_full[tile.stage], C::kScaleBox * 4);
      ptx::copy_box(smem.x_scale[tile.stage], &args.x_scale_map, s.first_row / 4 * 4, &smem.scales_full[tile.stage],
                    ptx::kEvictNormal);  // copies begin at multiples of 16 bytes
      tile.advance();
    }
    const int first_block = s.row_tile * C::kConsumers;
    const uint64_t policy = s.shared ? ptx::kEvictNormal : ptx::kEvictFirst;
#pragma unroll 1
    for (int g = s.first_group; g < s.first_group + s.groups; g += C::kStageGroups, ring.advance()) {
      uint64_t* full = &smem.full[ring.stage];
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      ptx::barrier_expect(full, bytes);
      ptx::copy_box(smem.codes[ring.stage], &args.codes_map, 0, g * 32, first_block, s.expert, full, policy);
      ptx::copy_box(smem.scale[ring.stage].bytes, &args.scale_map, g * kTileRows, first_block, s.expert, full, policy);
      ptx::copy_box(smem.x[ring.stage], &args.x_map, 0, s.first_row, g, full, ptx::kEvictNormal);
    }
  }
  if (C::kStageGroups == 2 && !args.looks_ahead) return;
  // Consumers that look ahead fetch two groups after the last, too: let them read something.
  for (int g = 0; g < 2; g += C::kStageGroups, ring.advance()) {
    ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
    ptx::barrier_arrive(&smem.full[ring.stage]);
  }
}

// A thread's share of one scale group as it lies in memory.
struct Packed {
  int4 first, second;
  uint32_t scale[2] = {0, 0};  // two bfloat16 in the first word, or two floats
};

// The same, ready for wgmma: A fragments of four multiplies, and the scales of the thread's two rows.
struct Weights {
  uint32_t a[16];
  float scale_upper, scale_lower;
};

// What a consumer thread knows for the whole kernel.  Addresses are in shared memory.
struct Place {
  int consumer, thread;
  uint32_t codes, scale;  // this thread's pieces in stage 0, group 0
};

template <class C>
__device__ __forceinline__ Place find_place(const typename C::Smem& smem, bool scale_float) {
  Place at;
  at.consumer = __shfl_sync(~0u, threadIdx.x / 128, 0);
  at.thread = threadIdx.x % 128;
  at.codes = ptx::shared_address(smem.codes[0][at.consumer]) + at.thread * 16;
  at.scale = ptx::shared_address(smem.scale[0].bytes) +
             (at.consumer * C::kStageGroups * (kTileRows / 2) + at.thread / 4) * (scale_float ? 8 : 4);
  // Opaque to the compiler, which would otherwise compute all this again in every step.
  asm volatile("" : "+r"(at.thread), "+r"(at.codes), "+r"(at.scale));
  return at;
}

template <class C, int kGroup>
__device__ __forceinline__ void load_packed(Packed& w, const Place& at, int stage, bool scale_float) {
  const uint32_t codes = at.codes + stage * (C::kConsumers * C::kStageGroups * kTileBytes) + kGroup * kTileBytes;
  w.first = ptx::load_shared_16(codes);
  w.second = ptx::load_shared_16(codes + kTileBytes / 2);
  const uint32_t scale = at.scale + stage * sizeof(typename C::Smem::StageScale);
  if (scale_float) {
    ptx::load_shared_8(scale + kGroup * (kTileRows * 4), w.scale[0], w.scale[1]);
  } else {
    w.scale[0] = ptx::load_shared_4(scale + kGroup * (kTileRows * 2));
  }
}

__device__ __forceinline__ void unpack_all(Weights& w, const Packed& from, const Arguments& args) {
  unpack(from.first.x, w.a[0], w.a[1]);
  unpack(from.first.y, w.a[2], w.a[3]);
  unpack(from.first.z, w.a[4], w.a[5]);
  unpack(from.first.w, w.a[6], w.a[7]);
  unpack(from.second.x, w.a[8], w.a[9]);
  unpack(from.second.y, w.a[10], w.a[11]);
  unpack(from.second.z, w.a[12], w.a[13]);
  unpack(from.second.w, w.a[14], w.a[15]);
  w.scale_upper = __uint_as_float(__byte_perm(from.scale[0], from.scale[1], args.upper_bytes));
  w.scale_lower = __uint_as_float(__byte_perm(from.scale[0], from.scale[1], args.lower_bytes));
}

template <class C, int kTokens>
__device__ __forceinline__ void promote(float (&acc)[kTokens / 2], const float (&product)[kTokens / 2], float scale_upper, float scale_lower,
                                        const Params& p, const Segment& s, int group) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    float left = 1.0f, right = 1.0f;
    if constexpr (C::kGroupScale) {
      const int t = 8 * j + 2 * (threadIdx.x % 4);  // this instance is not written for speed
      const int groups = p.cols / kTileCols;
      const float* scale = p.x_scale + static_cast<size_t>(s.first_row + t) * groups + s.first_group + group;
      left = t < s.tokens ? __ldg(scale) : 0.0f;
      right = t + 1 < s.tokens ? __ldg(scale + groups) : 0.0f;
    }
    if constexpr (C::kGroupScale) {
      acc[4 * j + 0] += scale_upper * left * product[4 * j + 0];
      acc[4 * j + 1] += scale_upper * right * product[4 * j + 1];
      acc[4 * j + 2] += scale_lower * left * product[4 * j + 2];
      acc[4 * j + 3] += scale_lower * right * product[4 * j + 3];
    } else {
      acc[4 * j + 0] += scale_upper * product[4 * j + 0];
      acc[4 * j + 1] += scale_upper * product[4 * j + 1];
      acc[4 * j + 2] += scale_lower * product[4 * j + 2];
      acc[4 * j + 3] += scale_lower * product[4 * j + 3];
    }
  }
}

// What a consumer carries from step to step, and from tile to tile: the group that multiplies next, unpacked; the one
// after it, as it lies in memory; the stage in use and the stage to fetch from.
template <class C>
struct Pipeline {
  Weights even, odd;
  Packed packed;
  Ring<C::kStages> use, fetch;
};

template <class C>
__device__ __forceinline__ void fill(Pipeline<C>& pipe, typename C::Smem& smem, const Place& at, const Arguments& args) {
  constexpr int kLast = C::kStageGroups - 1;  // 0 or 1
  Ring<C::kStages> from = pipe.use;
  ptx::barrier_wait(&smem.full[from.stage], from.phase);
  load_packed<C, 0>(pipe.packed, at, from.stage, args.p.weight_scale_float);
  unpack_all(pipe.even, pipe.packed, args);
  if constexpr (kLast == 0) {
    from.advance();
    ptx::barrier_wait(&smem.full[from.stage], from.phase);
  }
  load_packed<C, kLast>(pipe.packed, at, from.stage, args.p.weight_scale_float);
}

// True, but the compiler does not know it, nor that it is always the same.  Work that must stay where it is written, in
// the shadow of a multiply, stands in a branch on this: out of a straight line ptxas sinks it below the wait.
__device__ __forceinline__ bool always(const Params& p) {
  int cols;
  asm volatile("mov.u32 %0, %1;" : "=r"(cols) : "r"(p.cols));
  return cols != 0;
}

// One scale group, the kGroup-th of its stage.  Starts its four multiplies; beside them unpacks the next group and
// fetches the one after; then promotes.  The group after a tile's last is the next tile's first, unless kEnds says that
// nothing follows this stage.
template <class C, int kTokens, int kGroup, bool kEnds>
__device__ __forceinline__ void step(float (&acc)[kTokens / 2], const Weights& now, Weights& next, Pipeline<C>& pipe,
                                     typename C::Smem& smem, const Place& at, const Arguments& args, const Segment& s,
                                     int group) {
  constexpr bool kStageEnds = kGroup == C::kStageGroups - 1;
  const Params& p = args.p;
  float product[kTokens / 2];
  uint64_t* full = &smem.full[pipe.fetch.stage];
  uint32_t answer = 1;
  if constexpr (kGroup == 0 && !kEnds) answer = ptx::barrier_ask(full, pipe.fetch.phase);
  const uint32_t x = ptx::swizzled_rows(ptx::shared_address(smem.x[pipe.use.stage][kGroup]));
  ptx::wgmma_fence();
  ptx::Wgmma<kTokens>::template multiply<false>(product, now.a, x);
#pragma unroll
  for (int k = 1; k < 4; ++k) ptx::Wgmma<kTokens>::template multiply<true>(product, now.a + 4 * k, x + 2 * k);
  ptx::wgmma_commit();
  if (always(p)) {
    if constexpr (!kEnds || kGroup == 0) {
      unpack_all(next, pipe.packed, args);
#pragma unroll
      for (int i = 0; i < 16; ++i) ptx::pin(next.a[i]);
    }
    if constexpr (!kEnds) {
      if constexpr (kGroup == 0) ptx::barrier_insist(answer, full, pipe.fetch.phase);
      load_packed<C, kGroup>(pipe.packed, at, pipe.fetch.stage, p.weight_scale_float);
    }
    if constexpr (kStageEnds) pipe.fetch.advance();
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) ptx::pin(product[i]);
  if constexpr (kStageEnds) {
    if (at.thread % 32 == 0) ptx::barrier_arrive(&smem.empty[pipe.use.stage]);
    pipe.use.advance();
  }
  promote<C, kTokens>(acc, product, now.scale_upper, now.scale_lower, p, s, group);
}

// All groups of a segment.
template <class C, int kTokens>
__device__ __forceinline__ void accumulate(float (&acc)[kTokens / 2], Pipeline<C>& pipe, typename C::Smem& smem,
                                           const Place& at, const Arguments& args, const Segment& s) {
  const bool ahead = C::kStageGroups == 1 || args.looks_ahead;  // of single groups a step does not know which is the last
  if (!ahead) fill<C>(pipe, smem, at, args);
  const int last = ahead ? s.groups : s.groups - 2;
  int group = 0;
  for (; group < last; group += 2) {
    step<C, kTokens, 0, false>(acc, pipe.even, pipe.odd, pipe, smem, at, args, s, group);
    if (C::kStageGroups == 1 && group + 1 == last) {
      pipe.even = pipe.odd;
      break;
    }
    step<C, kTokens, C::kStageGroups - 1, false>(acc, pipe.odd, pipe.even, pipe, smem, at, args, s, group + 1);
  }
  if (!ahead) {
    step<C, kTokens, 0, true>(acc, pipe.even, pipe.odd, pipe, smem, at, args, s, group);
    step<C, kTokens, 1, true>(acc, pipe.odd, pipe.even, pipe, smem, at, args, s, group + 1);
  }
}

// Partial sums of a tile that is split along K: peers leave theirs, the owner adds them in order.
template <class C, int kTokens>
__device__ __forceinline__ void leave_partial(const Arguments& args, const float (&acc)[kTokens / 2], const Place& at) {
  const int slot = blockIdx.x * C::kConsumers + at.consumer;
  float* mine = args.partial + static_cast<size_t>(slot) * (C::kMaxTokens / 2 * 128) + at.thread;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) __stcg(mine + i * 128, acc[i]);
  __threadfence();
  ptx::named_barrier(1 + at.consumer, 128);
  if (at.thread == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(args.ready + slot) : "memory");
}

template <class C, int kTokens>
__device__ __forceinline__ void add_partials(const Arguments& args, float (&acc)[kTokens / 2], const Segment& s,
                                             const Place& at) {
  if (s.first_peer == s.end_peer) return;
  for (int peer = s.first_peer + at.thread; peer < s.end_peer; peer += 128) {  // all flags at once
    uint32_t* flag = args.ready + peer * C::kConsumers + at.consumer;
    uint32_t ready;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(flag) : "memory");
    } while (ready == 0);
    *flag = 0;  // for the next launch
  }
  ptx::named_barrier(1 + at.consumer, 128);
  const size_t stride = static_cast<size_t>(C::kConsumers) * (C::kMaxTokens / 2 * 128);
  const float* theirs = args.partial + s.first_peer * stride + at.consumer * (C::kMaxTokens / 2 * 128) + at.thread;
#pragma unroll 4
  for (int peer = s.first_peer; peer < s.end_peer; ++peer, theirs += stride) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) acc[i] += __ldcg(theirs + i * 128);
  }
}

template <class C, int kTokens>
__device__ __forceinline__ void consume(const Arguments& args, typename C::Smem& smem, Pipeline<C>& pipe,
                                        Ring<2>& tile, const Segment& s, const Place& at) {
  const Params& p = args.p;
  float acc[kTokens / 2];
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) acc[i] = 0.0f;
  accumulate<C, kTokens>(acc, pipe, smem, at, args, s);
  if (!s.owner) return leave_partial<C, kTokens>(args, acc, at);
  add_partials<C, kTokens>(args, acc, s, at);

  float2 scale[kTokens / 8];
  if (C::kGroupScale || p.x_scale_stride == 0) {
    const float all = kCodeUnit * (C::kGroupScale ? 1.0f : __ldg(p.x_scale));
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) scale[j] = {all, all};
  } else {
    ptx::barrier_wait(&smem.scales_full[tile.stage], tile.phase);
    const float* shared = smem.x_scale[tile.stage] + s.first_row % 4 + 2 * (at.thread % 4);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) scale[j] = {kCodeUnit * shared[8 * j], kCodeUnit * shared[8 * j + 1]};
    if (at.thread % 32 == 0) ptx::barrier_arrive(&smem.scales_empty[tile.stage]);
    tile.advance();
  }
  const int row_block = s.row_tile * C::kConsumers + at.consumer;
  if (row_block * kTileRows >= p.rows) return;
  if (p.out_type == OutType::kFloat32) {
    const int row = row_block * kTileRows + at.thread / 32 * 16 + at.thread % 32 / 4;
    store_float<kTokens>(p, acc, scale, s.first_row, s.tokens, row);
  } else {
    store_half<kTokens>(p, acc, scale, s.first_row, s.tokens, row_block, smem.out[at.consumer], 1 + at.consumer,
                        at.thread);
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& smem = *reinterpret_cast<typename C::Smem*>(shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    ptx::prefetch_map(&args.x_map);
    ptx::prefetch_map(&args.codes_map);
    ptx::prefetch_map(&args.scale_map);
    for (int i = 0; i < C::kStages; ++i) {
      ptx::barrier_init(&smem.full[i], 1);
      ptx::barrier_init(&smem.empty[i], 4 * C::kConsumers);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::barrier_init(&smem.scales_full[i], 1);
      ptx::barrier_init(&smem.scales_empty[i], 4 * C::kConsumers);
    }
    ptx::barrier_init_fence();
  }
  wait_for_previous();
  const int row_tiles = divide_up(args.p.rows, kTileRows * C::kConsumers);
  make_plan<C::kThreads>(args.p, row_tiles, C::kMaxTokens, smem.plan);

  if (warp >= 4 * C::kConsumers) {
    if constexpr (C::kMovesRegisters) ptx::registers_give<C::kLoaderRegisters>();
    if (warp == 4 * C::kConsumers && ptx::elect_one()) produce<C>(args, smem);
  } else {
    if constexpr (C::kMovesRegisters) ptx::registers_take<C::kConsumerRegisters>();
    const Place at = find_place<C>(smem, args.p.weight_scale_float);
    Walk walk(smem.plan, args.p, C::kMaxTokens, C::kStageGroups);
    Pipeline<C> pipe;
    Ring<2> tile;
    Segment s;
    for (int i = 0; i < 3 - C::kStageGroups; ++i) pipe.fetch.advance();
    bool more = walk.next(s);
    if ((C::kStageGroups == 1 || args.looks_ahead) && more) fill<C>(pipe, smem, at, args);
    while (more) {
      C::Tokens::dispatch(s.tokens, [&]<int kTokens>() { consume<C, kTokens>(args, smem, pipe, tile, s, at); });
      more = walk.next(s);
    }
  }
}

}  // namespace w4afp8::grouped_gemm
