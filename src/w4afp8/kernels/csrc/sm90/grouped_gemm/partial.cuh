// Partial sums of a tile that is split along K: peers leave theirs, the owner adds them in order.
#pragma once
#include "../../ptx/mbarrier.cuh"
#include "arguments.cuh"
#include "consumer.cuh"
#include "schedule.cuh"

namespace w4afp8::grouped_gemm {

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
  const int rank = Team<C::kCluster>::rank();  // partial sums come from the block of this rank of every team
  for (int peer = s.first_peer + at.thread; peer < s.end_peer; peer += 128) {  // all flags at once
    uint32_t* flag = args.ready + (peer * C::kCluster + rank) * C::kConsumers + at.consumer;
    uint32_t ready;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(flag) : "memory");
    } while (ready == 0);
    *flag = 0;  // for the next launch
  }
  ptx::named_barrier(1 + at.consumer, 128);
  const size_t slot = static_cast<size_t>(C::kMaxTokens / 2 * 128), stride = C::kCluster * C::kConsumers * slot;
  const float* theirs = args.partial + s.first_peer * stride + (rank * C::kConsumers + at.consumer) * slot + at.thread;
#pragma unroll 4
  for (int peer = s.first_peer; peer < s.end_peer; ++peer, theirs += stride) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) acc[i] += __ldcg(theirs + i * 128);
  }
}

}  // namespace w4afp8::grouped_gemm
