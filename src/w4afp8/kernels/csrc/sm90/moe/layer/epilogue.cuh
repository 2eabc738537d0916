// What happens to a tile's sums: partial sums meet; gate and up become an activation; down products go out.
#pragma once
#include "../swiglu.cuh"
#include "multiply.cuh"
#include "quantize.cuh"

namespace w4afp8::moe::layer {

constexpr float kCodeUnit = 512.0f;  // codes are multiplied as code * 2^-9

// Named barriers; 0 is the whole block's.  Gate and up warpgroups of a pair p share the two of the second and third row.
__device__ __forceinline__ int own_barrier(int consumer) { return 1 + consumer; }
__device__ __forceinline__ int gate_full(int pair) { return 5 + pair; }
__device__ __forceinline__ int gate_empty(int pair) { return 7 + pair; }
__device__ __forceinline__ void named_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Values a consumer of block `block` leaves or left in `phase`: [kTokens / 2][128].
template <class C>
__device__ __forceinline__ float* partial_of(float* partial, Phase phase, int block, int consumer) {
  const size_t slot = (static_cast<size_t>(phase) * gridDim.x + block) * kConsumers + consumer;
  return partial + slot * (C::kTokens / 2 * 128);
}

template <class C>
__device__ __forceinline__ void leave_partial(float* partial, Signals& signals, const Segment& s, const Place& at,
                                              const float (&acc)[C::kTokens / 2]) {
  float* mine = partial_of<C>(partial, s.phase, blockIdx.x, at.consumer) + at.thread;
#pragma unroll
  for (int i = 0; i < C::kTokens / 2; ++i) __stcg(mine + i * 128, acc[i]);
  ptx::named_barrier(own_barrier(at.consumer), 128);
  if (at.thread == 0) release_add(&signals.partial_ready[s.phase][blockIdx.x * kConsumers + at.consumer]);
}

template <class C>
__device__ __forceinline__ void add_partials(const Layer& p, const Plan& plan, float* partial, const Signals& signals,
                                             const Segment& s, const Place& at, float (&acc)[C::kTokens / 2]) {
  if (s.end_unit == 0) return;
  const Shares shares(p, plan, s.phase);
  const int first_peer = blockIdx.x + 1;
  int peers = 0;  // the blocks after this one that begin inside the tile
  for (int more = 32; more == 32; peers += more) {
    const int peer = first_peer + peers + at.thread % 32;
    more = __popc(__ballot_sync(~0u, peer < static_cast<int>(gridDim.x) && shares.begin(peer) < s.end_unit));
  }
  for (int i = at.thread; i < peers; i += 128) {  // all flags at once
    await(&signals.partial_ready[s.phase][(first_peer + i) * kConsumers + at.consumer], 1);
  }
  ptx::named_barrier(own_barrier(at.consumer), 128);
  const float* theirs = partial_of<C>(partial, s.phase, first_peer, at.consumer) + at.thread;
#pragma unroll 4
  for (int i = 0; i < peers; ++i, theirs += kConsumers * (C::kTokens / 2 * 128)) {
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; ++i) acc[i] += __ldcg(theirs + i * 128);
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

// Consumers 0 and 1 hold gate products, 2 and 3 the up products of the same columns.  Whoever completes a run's last
// columns requantizes its rows.
template <class C>
__device__ __forceinline__ void activate(const Layer& p, typename C::Smem& smem, Signals& signals, const Segment& s,
                                         const Place& at, const uint32_t (&words)[C::kTokens / 4], bool& gate_used) {
  constexpr int kWords = C::kTokens / 4;
  const int pair = at.consumer % 2;
  uint32_t* exchange = smem.gate[pair] + at.thread;
  if (at.consumer < 2) {
    if (gate_used) ptx::named_barrier(gate_empty(pair), 256);
    gate_used = true;
#pragma unroll
    for (int i = 0; i < kWords; ++i) exchange[i * 128] = words[i];
    named_arrive(gate_full(pair), 256);
    return;
  }
  ptx::named_barrier(gate_full(pair), 256);
  const int row = (s.row_tile * 2 + pair) * kTileRows + at.thread / 32 * 16 + at.thread % 32 / 4;
  float2 most[kWords / 2] = {};
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const float2 gate = widen_pair(exchange[i * 128], p.type), up = widen_pair(words[i], p.type);
    const int token = i / 2 * 8 + at.thread % 4 * 2;
    float* out = p.activated + static_cast<size_t>(s.first_row + token) * p.inner + row + i % 2 * 8;
    const float left = token < s.tokens ? swiglu(gate.x, up.x, p.swiglu) : 0.0f;
    const float right = token + 1 < s.tokens ? swiglu(gate.y, up.y, p.swiglu) : 0.0f;
    if (token < s.tokens) __stcg(out, left);
    if (token + 1 < s.tokens) __stcg(out + p.inner, right);
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
    uint32_t* largest = signals.largest + s.first_row + token;
    if (at.thread % 32 < 4 && token < s.tokens) atomicMax(largest, __float_as_uint(most[j].x));
    if (at.thread % 32 < 4 && token + 1 < s.tokens) atomicMax(largest + 1, __float_as_uint(most[j].y));
  }
  named_arrive(gate_empty(pair), 256);
  ptx::named_barrier(own_barrier(at.consumer), 128);
  if (at.thread == 0) smem.last[at.consumer] = exchange_add(&signals.activated[s.run]);
  ptx::named_barrier(own_barrier(at.consumer), 128);
  if (smem.last[at.consumer] + 1 != static_cast<uint32_t>(p.inner / kTileRows)) return;
  quantize_run(p, s, signals.largest, at.thread);
  ptx::named_barrier(own_barrier(at.consumer), 128);
  if (at.thread == 0) release_add(&signals.run_ready[s.run]);
}

template <class C>
__device__ __forceinline__ void store_down(const Layer& p, typename C::Smem& smem, const Segment& s, const Place& at,
                                           const uint32_t (&words)[C::kTokens / 4]) {
  constexpr int kPitch = kTileRows + 8;  // spreads the banks
  const int block = s.row_tile * kConsumers + at.consumer;
  if (block >= p.weight[kDown].row_blocks) return;
  uint16_t* staging = smem.out[at.consumer];
  const int row = at.thread / 32 * 16 + at.thread % 32 / 4;
  ptx::named_barrier(own_barrier(at.consumer), 128);  // the previous tile has left
#pragma unroll
  for (int i = 0; i < C::kTokens / 4; ++i) {
    uint16_t* place = staging + (i / 2 * 8 + at.thread % 4 * 2) * kPitch + row + i % 2 * 8;
    place[0] = static_cast<uint16_t>(words[i]);
    place[kPitch] = static_cast<uint16_t>(words[i] >> 16);
  }
  ptx::named_barrier(own_barrier(at.consumer), 128);
  uint16_t* out = static_cast<uint16_t*>(p.down) + static_cast<size_t>(s.first_row) * p.hidden + block * kTileRows;
#pragma unroll
  for (int base = 0; base < C::kTokens; base += 16) {
    const int token = base + at.thread / 8, piece = at.thread % 8;
    if (token < s.tokens) {
      __stcg(reinterpret_cast<int4*>(out + static_cast<size_t>(token) * p.hidden + piece * 8),
             *reinterpret_cast<const int4*>(staging + token * kPitch + piece * 8));
    }
  }
}

}  // namespace w4afp8::moe::layer
