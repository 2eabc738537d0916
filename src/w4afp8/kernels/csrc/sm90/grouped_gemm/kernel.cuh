// W4AFP8 grouped GEMM for SM90.  out[t, n] = x_scale[t] * sum_g weight_scale[n, g] * sum_k x[t, k] * code[n, k].
//
// Operands are swapped: the weights are wgmma's A (64 rows), made into e4m3 in registers on the way; the tokens are its
// N (8 .. 160), read from shared memory.  One warp streams codes, scales and x through a ring of stages with the bulk
// copy engine; each consumer warpgroup owns 64 output rows.  Every 128 inputs, one scale group, the product is promoted:
// acc += weight_scale * product, in float32.
#pragma once
#include "../../ptx/copy.cuh"
#include "../../ptx/wgmma.cuh"
#include "config.h"
#include "dequantize.cuh"
#include "epilogue.cuh"
#include "params.h"
#include "schedule.cuh"

namespace w4afp8::grouped_gemm {

struct Arguments {
  CUtensorMap x_map;
  Params p;
  float* partial;    // [blocks][consumers][tokens/2][128]
  uint32_t* ready;   // [blocks][consumers], zero between launches
};

template <class C>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == C::kStages) stage = 0, phase ^= 1;
  }
};

// One thread: keeps the ring full.
template <class C>
__device__ void produce(const Arguments& args, typename C::Smem& smem) {
  const Params& p = args.p;
  const int row_blocks = p.rows / kTileRows, groups = p.cols / kTileCols;
  const int scale_bytes = kTileRows * (p.weight_scale_float ? 4 : 2);
  Walk walk(smem.plan, p, C::kMaxTokens);
  Ring<C> ring;
  Segment s;
  while (walk.next(s)) {
    const int first_block = s.row_tile * C::kConsumers;
    const int blocks = min(C::kConsumers, row_blocks - first_block);
    const int boxes = divide_up(s.tokens, C::kBoxRows);
    for (int g = 0; g < s.groups; g += C::kStageGroups, ring.advance()) {
      const int n = min(C::kStageGroups, s.groups - g);
      uint64_t* full = &smem.full[ring.stage];
      ptx::barrier_wait(&smem.empty[ring.stage], ring.phase ^ 1);
      ptx::barrier_expect(full, n * (blocks * (kTileBytes + scale_bytes) + boxes * C::kBoxRows * kTileCols));
      for (int b = 0; b < blocks; ++b) {
        const size_t tile = (static_cast<size_t>(s.expert) * row_blocks + first_block + b) * groups + s.first_group + g;
        ptx::copy_bytes(smem.codes[ring.stage][b], p.codes + tile * kTileBytes, n * kTileBytes, full, ptx::kEvictFirst);
        ptx::copy_bytes(smem.scale[ring.stage][b], static_cast<const uint8_t*>(p.weight_scale) + tile * scale_bytes,
                        n * scale_bytes, full, ptx::kEvictFirst);
      }
      for (int j = 0; j < n; ++j) {
        for (int box = 0; box < boxes; ++box) {
          ptx::copy_box(&smem.x[ring.stage][j][box * C::kBoxRows * kTileCols], &args.x_map,
                        (s.first_group + g + j) * kTileCols, s.first_row + box * C::kBoxRows, full);
        }
      }
    }
  }
}

// A thread's weights of one scale group as they lie in memory: four k32 steps of codes, the scales of its two rows.
struct Packed {
  uint32_t words[8];
  float scale_upper, scale_lower;
};

__device__ __forceinline__ void load_packed(Packed& w, const uint8_t* codes, const uint8_t* scale, bool scale_float) {
  const int thread = threadIdx.x % 128;
  const int4* pieces = reinterpret_cast<const int4*>(codes);
#pragma unroll
  for (int piece = 0; piece < 2; ++piece) {
    const int4 words = pieces[piece * 128 + thread];
    w.words[4 * piece + 0] = words.x, w.words[4 * piece + 1] = words.y;
    w.words[4 * piece + 2] = words.z, w.words[4 * piece + 3] = words.w;
  }
  const int pair = thread / 4;  // rows r and r + 8 are neighbours
  if (scale_float) {
    const float2 v = reinterpret_cast<const float2*>(scale)[pair];
    w.scale_upper = v.x, w.scale_lower = v.y;
  } else {
    const uint32_t v = reinterpret_cast<const uint32_t*>(scale)[pair];
    w.scale_upper = __uint_as_float(v << 16), w.scale_lower = __uint_as_float(v & 0xffff0000u);
  }
}

// Where a consumer stands in the ring: a stage and a group inside it.
template <class C>
struct Cursor {
  Ring<C> ring;
  int group = 0;
};

template <class C, int kTokens>
__device__ __forceinline__ void promote(float (&acc)[kTokens / 2], const float (&product)[kTokens / 2], float scale_upper, float scale_lower,
                                        const Params& p, const Segment& s, int group) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    float left = 1.0f, right = 1.0f;
    if constexpr (C::kGroupScale) {
      const int t = 8 * j + 2 * (threadIdx.x % 4);
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

// One scale group: unpack and start a multiply four times, the second to fourth unpacked beside the running ones; fetch
// the packed weights of the next group; promote.
template <class C, int kTokens>
__device__ __forceinline__ void step(float (&acc)[kTokens / 2], Packed& w, Cursor<C>& at, typename C::Smem& smem,
                                     const Params& p, const Segment& s, int group, int consumer) {
  float product[kTokens / 2];
  uint32_t a[16];
  const uint64_t x = ptx::swizzled_rows(ptx::shared_address(smem.x[at.ring.stage][at.group]));
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    unpack(w.words[2 * k], a[4 * k], a[4 * k + 1]);
    unpack(w.words[2 * k + 1], a[4 * k + 2], a[4 * k + 3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) ptx::pin(a[4 * k + i]);
    ptx::wgmma_fence();
    ptx::Wgmma<kTokens>::multiply(product, a + 4 * k, x + 2 * k, k > 0);
    ptx::wgmma_commit();
  }
  const float scale_upper = w.scale_upper, scale_lower = w.scale_lower;
  const int used = at.ring.stage;
  const bool stage_done = ++at.group == C::kStageGroups || group + 1 == s.groups;
  if (stage_done) at.group = 0, at.ring.advance();
  if (group + 1 < s.groups) {
    if (at.group == 0) ptx::barrier_wait(&smem.full[at.ring.stage], at.ring.phase);
    load_packed(w, smem.codes[at.ring.stage][consumer] + at.group * kTileBytes,
                smem.scale[at.ring.stage][consumer] + at.group * kTileRows * (p.weight_scale_float ? 4 : 2),
                p.weight_scale_float);
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) ptx::pin(product[i]);
  if (stage_done && threadIdx.x % 32 == 0) ptx::barrier_arrive(&smem.empty[used]);
  promote<C, kTokens>(acc, product, scale_upper, scale_lower, p, s, group);
}

// Partial sums of a tile that is split along K: peers leave theirs, the owner adds them in order.
template <class C, int kTokens>
__device__ __forceinline__ void leave_partial(const Arguments& args, const float (&acc)[kTokens / 2], int consumer) {
  const int thread = threadIdx.x % 128;
  const int slot = blockIdx.x * C::kConsumers + consumer;
  float* mine = args.partial + static_cast<size_t>(slot) * (C::kMaxTokens / 2 * 128);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) __stcg(mine + i * 128 + thread, acc[i]);
  __threadfence();
  ptx::named_barrier(1 + consumer, 128);
  if (thread == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(args.ready + slot) : "memory");
}

template <class C, int kTokens>
__device__ __forceinline__ void add_partials(const Arguments& args, float (&acc)[kTokens / 2], const Segment& s,
                                             int consumer) {
  const int thread = threadIdx.x % 128;
  for (int peer = s.first_peer; peer < s.end_peer; ++peer) {
    const int slot = peer * C::kConsumers + consumer;
    if (thread == 0) {
      uint32_t ready;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(args.ready + slot) : "memory");
      } while (ready == 0);
      args.ready[slot] = 0;  // for the next launch
    }
    ptx::named_barrier(1 + consumer, 128);
    const float* theirs = args.partial + static_cast<size_t>(slot) * (C::kMaxTokens / 2 * 128);
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) acc[i] += __ldcg(theirs + i * 128 + thread);
  }
}

template <class C, int kTokens>
__device__ __forceinline__ void consume(const Arguments& args, typename C::Smem& smem, Cursor<C>& at, const Segment& s,
                                        int consumer) {
  const Params& p = args.p;
  float acc[kTokens / 2];
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) acc[i] = 0.0f;
  Packed w;
  ptx::barrier_wait(&smem.full[at.ring.stage], at.ring.phase);
  load_packed(w, smem.codes[at.ring.stage][consumer], smem.scale[at.ring.stage][consumer], p.weight_scale_float);
  for (int group = 0; group < s.groups; ++group) step<C, kTokens>(acc, w, at, smem, p, s, group, consumer);
  if (!s.owner) return leave_partial<C, kTokens>(args, acc, consumer);
  add_partials<C, kTokens>(args, acc, s, consumer);
  const int row_block = s.row_tile * C::kConsumers + consumer;
  if (row_block * kTileRows >= p.rows) return;
  if (p.out_type == OutType::kFloat32) {
    const int row = row_block * kTileRows + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    store_float<kTokens>(p, acc, s.first_row, s.tokens, row, !C::kGroupScale);
  } else {
    store_half<kTokens>(p, acc, s.first_row, s.tokens, row_block, !C::kGroupScale, smem.out[consumer], 1 + consumer);
  }
}

template <class C>
__global__ void __maxnreg__(C::kRegisters) kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& smem = *reinterpret_cast<typename C::Smem*>(shared);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    ptx::prefetch_map(&args.x_map);
    for (int i = 0; i < C::kStages; ++i) {
      ptx::barrier_init(&smem.full[i], 1);
      ptx::barrier_init(&smem.empty[i], 4 * C::kConsumers);
    }
    ptx::barrier_init_fence();
  }
  const int row_tiles = divide_up(args.p.rows, kTileRows * C::kConsumers);
  make_plan<C::kThreads>(args.p, row_tiles, C::kMaxTokens, smem.plan);

  if (warp == 4 * C::kConsumers) {
    if (threadIdx.x % 32 == 0) produce<C>(args, smem);
    return;
  }
  const int consumer = __shfl_sync(~0u, threadIdx.x / 128, 0);
  Walk walk(smem.plan, args.p, C::kMaxTokens);
  Cursor<C> at;
  Segment s;
  while (walk.next(s)) {
    C::Tokens::dispatch(s.tokens, [&]<int kTokens>() { consume<C, kTokens>(args, smem, at, s, consumer); });
  }
}

}  // namespace w4afp8::grouped_gemm
