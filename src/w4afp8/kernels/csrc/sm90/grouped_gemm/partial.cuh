// Partial sums of a tile that is split along K: peers leave theirs, the owner adds them in order.
//
// Small tiles: every word is its own signal, and a thread waits for its own words alone.  Large tiles, whose registers are
// full: a consumer's sums, a fence, then a flag.
#pragma once
#include "../../ptx/mbarrier.cuh"
#include "../own_signal.cuh"
#include "arguments.cuh"
#include "consumer.cuh"
#include "schedule.cuh"

namespace w4afp8::grouped_gemm {

// A consumer's place among those of all blocks.  A block leaves the sums of one tile at most, its first.
template <class C>
__device__ __forceinline__ int slot_of(int block, const Place& at) {
  return block * C::kConsumers + at.consumer;
}

// The consumer of the same rank and number of team `peer`.
template <class C>
__device__ __forceinline__ int slot_of_peer(int peer, const Place& at) {
  return slot_of<C>(peer * C::kCluster + Team<C::kCluster>::rank(), at);
}

template <class C, int kTokens>
__device__ __forceinline__ void leave_words(const Arguments& args, const float (&acc)[kTokens / 2], const Place& at) {
  uint4* mine = reinterpret_cast<uint4*>(args.partial) + slot_of<C>(blockIdx.x, at) * (C::kMaxTokens / 8 * 128) + at.thread;
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) leave_four(mine + j * 128, acc + 4 * j);
}

template <class C, int kTokens>
__device__ __forceinline__ void add_words(const Arguments& args, float (&acc)[kTokens / 2], const Segment& s,
                                          const Place& at) {
  constexpr int kFours = kTokens / 8;
  constexpr int kPeers = kFours == 1 ? 4 : kFours == 2 ? 2 : 1;  // asked at once, as many as registers allow
  constexpr int kChunk = kFours < 4 ? kFours : 4;
  constexpr int kSlot = C::kMaxTokens / 8 * 128, kPitch = C::kCluster * C::kConsumers * kSlot;  // between peers
  uint4* theirs = reinterpret_cast<uint4*>(args.partial) + slot_of_peer<C>(s.first_peer, at) * kSlot + at.thread;
#pragma unroll 1
  for (int peer = s.first_peer; peer < s.end_peer; peer += kPeers, theirs += kPeers * kPitch) {
#pragma unroll
    for (int first = 0; first < kFours; first += kChunk) {
      uint4 v[kPeers][kChunk];
      bool there;
      do {
        there = true;
#pragma unroll
        for (int i = 0; i < kPeers; ++i) {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) {
            const bool wanted = first + j < kFours && peer + i < s.end_peer;
            v[i][j] = wanted ? look_at_four(theirs + i * kPitch + (first + j) * 128) : uint4{};
          }
        }
#pragma unroll
        for (int i = 0; i < kPeers; ++i) {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) there &= all_there(v[i][j]);
        }
      } while (!__all_sync(~0u, there));
#pragma unroll
      for (int i = 0; i < kPeers; ++i) {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          if (first + j >= kFours) continue;
          float* sum = acc + 4 * (first + j);
          sum[0] += __uint_as_float(v[i][j].x);
          sum[1] += __uint_as_float(v[i][j].y);
          sum[2] += __uint_as_float(v[i][j].z);
          sum[3] += __uint_as_float(v[i][j].w);
          if (peer + i < s.end_peer) {  // for the next launch
            theirs[i * kPitch + (first + j) * 128] = {kAbsent, kAbsent, kAbsent, kAbsent};
          }
        }
      }
    }
  }
}

template <class C, int kTokens>
__device__ __forceinline__ void leave_flagged(const Arguments& args, const float (&acc)[kTokens / 2], const Place& at) {
  const int slot = slot_of<C>(blockIdx.x, at);
  float* mine = args.partial + static_cast<size_t>(slot) * (C::kMaxTokens / 2 * 128) + at.thread;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) __stcg(mine + i * 128, acc[i]);
  __threadfence();
  ptx::named_barrier(1 + at.consumer, 128);
  if (at.thread == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(args.ready + slot) : "memory");
}

template <class C, int kTokens>
__device__ __forceinline__ void add_flagged(const Arguments& args, float (&acc)[kTokens / 2], const Segment& s,
                                            const Place& at) {
  for (int peer = s.first_peer + at.thread; peer < s.end_peer; peer += 128) {  // all flags at once
    uint32_t* flag = args.ready + slot_of_peer<C>(peer, at);
    uint32_t ready;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(flag) : "memory");
    } while (ready == 0);
    *flag = 0;  // for the next launch
  }
  ptx::named_barrier(1 + at.consumer, 128);
  const size_t slot = static_cast<size_t>(C::kMaxTokens / 2 * 128), stride = C::kCluster * C::kConsumers * slot;
  const float* theirs = args.partial + slot_of_peer<C>(s.first_peer, at) * slot + at.thread;
#pragma unroll 4
  for (int peer = s.first_peer; peer < s.end_peer; ++peer, theirs += stride) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) acc[i] += __ldcg(theirs + i * 128);
  }
}

template <class C, int kTokens>
__device__ __forceinline__ void leave_partial(const Arguments& args, const float (&acc)[kTokens / 2], const Place& at) {
  if constexpr (C::kFlags) {
    leave_flagged<C, kTokens>(args, acc, at);
  } else {
    leave_words<C, kTokens>(args, acc, at);
  }
}

template <class C, int kTokens>
__device__ __forceinline__ void add_partials(const Arguments& args, float (&acc)[kTokens / 2], const Segment& s,
                                             const Place& at) {
  if (s.first_peer == s.end_peer) return;
  if constexpr (C::kFlags) {
    add_flagged<C, kTokens>(args, acc, s, at);
  } else {
    add_words<C, kTokens>(args, acc, s, at);
  }
}

}  // namespace w4afp8::grouped_gemm
