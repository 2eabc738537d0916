// What happens to a tile's sums: partial sums meet; gate and up become an activation; down products go out.
#pragma once
#include "../swiglu.cuh"
#include "multiply.cuh"
#include "quantize.cuh"

namespace w4afp8::moe::layer {

constexpr float kCodeUnit = 512.0f;  // codes are multiplied as code * 2^-9

// Named barriers; 0 is the whole block's.  Gate and up warpgroups of a pair p share the two of the second and third
// row.
__device__ __forceinline__ int own_barrier(int consumer) { return 1 + consumer; }
__device__ __forceinline__ int gate_full(int pair) { return 5 + pair; }
__device__ __forceinline__ int gate_empty(int pair) { return 7 + pair; }
__device__ __forceinline__ void named_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// An up warpgroup says that it has read what its gate warpgroup left, and that one waits for it before it leaves more.
template <class Smem>
__device__ __forceinline__ void gate_is_read(Smem& smem, int pair) {
  if constexpr (ptx::kForRacecheck) return ptx::barrier_arrive(&smem.checked.gate_read[pair]);
  named_arrive(gate_empty(pair), 256);
}
struct GateUse {
  bool used = false;
  uint32_t phase = 0;  // of the build for the race checker
  template <class Smem>
  __device__ __forceinline__ void wait(Smem& smem, int pair) {
    if (!used) return;
    if constexpr (ptx::kForRacecheck) {
      ptx::barrier_wait(&smem.checked.gate_read[pair], phase);
      phase ^= 1;
    } else {
      ptx::named_barrier(gate_empty(pair), 256);
    }
  }
};

// Where a consumer of block `block` leaves its sums in `phase`: [kTokens / 8][128] of four, each its own signal.
// A block leaves them at most once a phase.
template <class C>
__device__ __forceinline__ uint4* partial_of(uint4* partial, Phase phase, int block, int consumer) {
  const size_t slot = (static_cast<size_t>(phase) * gridDim.x + block) * kConsumers + consumer;
  return partial + slot * (C::kTokens / 8 * 128);
}

template <class C>
__device__ __forceinline__ void leave_partial(uint4* partial, const Segment& s, const Place& at,
                                              const float (&acc)[C::kTokens / 2]) {
  uint4* mine = partial_of<C>(partial, s.phase, blockIdx.x, at.consumer) + at.thread;
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; ++j) leave_four(mine + j * 128, acc + 4 * j);
}

// Every thread waits for its own values, of several blocks at once.
template <class C>
__device__ __forceinline__ void add_partials(uint4* partial, const Segment& s, const Place& at,
                                             float (&acc)[C::kTokens / 2]) {
  constexpr int kAtOnce = C::kTokens > 8 ? 1 : 4;  // blocks; registers are short
  constexpr int kFours = C::kTokens / 8;
  constexpr int kPitch = kConsumers * kFours * 128;  // between blocks
  uint4* theirs = partial_of<C>(partial, s.phase, blockIdx.x + 1, at.consumer) + at.thread;
#pragma unroll 1
  for (int first = 0; first < s.peers; first += kAtOnce, theirs += kAtOnce * kPitch) {
    const int here = kAtOnce == 1 ? 1 : min(kAtOnce, s.peers - first);
    uint4 v[kAtOnce][kFours];
    bool there;
    do {
      there = true;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < kFours; ++j) {
          v[i][j] = i < here ? look_at_four(theirs + i * kPitch + j * 128) : uint4{};
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int j = 0; j < kFours; ++j) there &= all_there(v[i][j]);
      }
    } while (!__all_sync(~0u, there));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < kFours; ++j) {
        acc[4 * j] += __uint_as_float(v[i][j].x);
        acc[4 * j + 1] += __uint_as_float(v[i][j].y);
        acc[4 * j + 2] += __uint_as_float(v[i][j].z);
        acc[4 * j + 3] += __uint_as_float(v[i][j].w);
        if (i < here) theirs[i * kPitch + j * 128] = {kAbsent, kAbsent, kAbsent, kAbsent};  // for the next launch
      }
    }
  }
}

__device__ __forceinline__ float2 widen_pair(uint32_t pair, InType type) {
  if (type == InType::kBFloat16) return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

// The products in 16 bits, word j*2 + h: tokens 8j + 2 * (lane % 4) and the next, weight row r (h = 0) or r + 8.
template <class C>
__device__ __forceinline__ void round_all(const Layer& p, const float (&acc)[C::kTokens / 2],
                                          const float2 (&x_scale)[C::kTokens / 8], uint32_t (&words)[C::kTokens / 4]) {
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; ++j) {
    const float left = kCodeUnit * x_scale[j].x, right = kCodeUnit * x_scale[j].y;
    words[2 * j] = round_pair(acc[4 * j] * left, acc[4 * j + 1] * right, p.type);
    words[2 * j + 1] = round_pair(acc[4 * j + 2] * left, acc[4 * j + 3] * right, p.type);
  }
}

template <class C>
__device__ __forceinline__ void leave_activated(float* place, float v) {
  if constexpr (C::kFew) {
    leave_word(reinterpret_cast<uint32_t*>(place), never_absent(v));
  } else {
    *place = v;
  }
}

// Consumers 0 and 1 hold gate products, 2 and 3 the up products of the same columns.  Other warps requantize what they
// leave (requantize.cuh); of few pairs in few tiles, values and maxima are their own signal.
template <class C>
__device__ __forceinline__ void activate(const Arguments<C>& args, typename C::Smem& smem, const Segment& s,
                                         const Place& at, const uint32_t (&words)[C::kTokens / 4], GateUse& gate_use) {
  const Layer& p = args.layer;
  constexpr int kWords = C::kTokens / 4;
  const int pair = at.consumer % 2;
  uint32_t* exchange = smem.gate[pair] + at.thread;
  if (at.consumer < 2) {
    gate_use.wait(smem, pair);
    gate_use.used = true;
#pragma unroll
    for (int i = 0; i < kWords; ++i) exchange[i * 128] = words[i];
    named_arrive(gate_full(pair), 256);
    return;
  }
  ptx::named_barrier(gate_full(pair), 256);
  // Looked up here: registers are short in the loop.
  typename C::Signals& signals = args.state->signals[smem.set];
  FewRow* few = nullptr;
  bool few_tiles = false;
  if constexpr (C::kFew) few = args.few.rows[smem.set], few_tiles = tiles_are_few(p, smem.plan.runs);
  const int row = (s.row_tile * 2 + pair) * kTileRows + at.thread / 32 * 16 + at.thread % 32 / 4;
  float* activated = few_tiles ? reinterpret_cast<float*>(args.few.values) : p.activated;
  const int pitch = few_tiles ? kFewInner : p.inner;
  float2 most[kWords / 2] = {};
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const float2 gate = widen_pair(exchange[i * 128], p.type), up = widen_pair(words[i], p.type);
    const int token = i / 2 * 8 + at.thread % 4 * 2;
    const size_t place = static_cast<size_t>(s.first_row + token) * pitch + row + i % 2 * 8;
    float* out = activated + place;
    const float left = token < s.tokens ? swiglu(gate.x, up.x, p.swiglu) : 0.0f;
    const float right = token + 1 < s.tokens ? swiglu(gate.y, up.y, p.swiglu) : 0.0f;
    if (token < s.tokens) leave_activated<C>(out, left);
    if (token + 1 < s.tokens) leave_activated<C>(out + pitch, right);
    most[i / 2].x = fmaxf(most[i / 2].x, fabsf(left));
    most[i / 2].y = fmaxf(most[i / 2].y, fabsf(right));
  }
#pragma unroll
  for (int j = 0; j < kWords / 2; ++j) {  // over the warp's rows; eight lanes hold the same two tokens
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      most[j].x = fmaxf(most[j].x, __shfl_xor_sync(~0u, most[j].x, step));
      most[j].y = fmaxf(most[j].y, __shfl_xor_sync(~0u, most[j].y, step));
    }
    const int token = j * 8 + at.thread % 4 * 2;
    if (few_tiles) {
      uint32_t* largest = &few[s.first_row + token].largest[s.row_tile * 8 + pair * 4 + at.thread / 32];
      if (at.thread % 32 < 4 && token < s.tokens) leave_word(largest, __float_as_uint(most[j].x));
      if (at.thread % 32 < 4 && token + 1 < s.tokens) leave_word(largest + kFewPitch, __float_as_uint(most[j].y));
      continue;
    }
    uint32_t* largest = signals.largest + s.first_row + token;
    if (at.thread % 32 < 4 && token < s.tokens) atomicMax(largest, __float_as_uint(most[j].x));
    if (at.thread % 32 < 4 && token + 1 < s.tokens) atomicMax(largest + 1, __float_as_uint(most[j].y));
  }
  gate_is_read(smem, pair);
  if (few_tiles) return;
  ptx::named_barrier(own_barrier(at.consumer), 128);
  if (at.thread == 0) release_add(&signals.activated[s.run]);
}

// A warp's sixteen weight rows leave by themselves, transposed through shared memory: 32 bytes a token, a whole sector,
// and no warp waits for another.
template <class C>
__device__ __forceinline__ void store_down(const Layer& p, void* down, const Segment& s, const Place& at,
                                           const uint32_t (&words)[C::kTokens / 4]) {
  static_assert(C::kTokens <= 16, "two lanes a token");
  __syncwarp();  // the previous tile has left
#pragma unroll
  for (int j = 0; j < C::kTokens / 8; ++j) {
    ptx::store_transposed(at.staged + j * 256, words[2 * j], words[2 * j + 1]);
  }
  __syncwarp();
  if (at.thread % 32 / 2 < s.tokens) {
    uint16_t* tile = static_cast<uint16_t*>(down) + (s.first_row * p.hidden + s.row_tile * (kConsumers * kTileRows));
    const int4 v = ptx::load_shared_16(at.fetched);
    if constexpr (C::kFew) {
      leave_words(tile + at.out, v);  // rounding's NaN is 0x7fff, never absent
    } else {
      __stcg(reinterpret_cast<int4*>(tile + at.out), v);
    }
  }
}

}  // namespace w4afp8::moe::layer
