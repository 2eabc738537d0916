// Partial sums of a tile that is split along K: peers leave theirs, the owner adds them in order.  Every word is its own
// signal, and a thread waits for its own words alone.
#pragma once
#include "../own_signal.cuh"
#include "arguments.cuh"
#include "consumer.cuh"
#include "schedule.cuh"

namespace w4afp8::grouped_gemm {

// Where a consumer of block `block` leaves the sums of its one tile that another block owns: [tokens / 8][128] of four.
template <class C>
__device__ __forceinline__ uint4* partial_of(const Arguments& args, int block, const Place& at) {
  return args.partial + (static_cast<size_t>(block) * C::kConsumers + at.consumer) * (C::kMaxTokens / 8 * 128) + at.thread;
}

template <class C, int kTokens>
__device__ __forceinline__ void leave_partial(const Arguments& args, const float (&acc)[kTokens / 2], const Place& at) {
  uint4* mine = partial_of<C>(args, blockIdx.x, at);
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) leave_four(mine + j * 128, acc + 4 * j);
}

template <class C, int kTokens>
__device__ __forceinline__ void add_partials(const Arguments& args, float (&acc)[kTokens / 2], const Segment& s,
                                             const Place& at) {
  if (s.first_peer == s.end_peer) return;
  constexpr int kFours = kTokens / 8;
  constexpr int kPeers = kFours == 1 ? 4 : kFours == 2 ? 2 : 1;  // asked at once, as many as registers allow
  constexpr int kChunk = kFours < 4 ? kFours : 4;
  constexpr int kPitch = C::kCluster * C::kConsumers * (C::kMaxTokens / 8 * 128);  // between peers
  const int rank = Team<C::kCluster>::rank();  // partial sums come from the block of this rank of every team
  uint4* theirs = partial_of<C>(args, s.first_peer * C::kCluster + rank, at);
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

}  // namespace w4afp8::grouped_gemm
