// Barriers in shared memory that count arrivals and, for copies, bytes; and what else threads do with shared memory.
#pragma once
#include <cstdint>

#include "racecheck.h"

namespace w4afp8::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// How many lanes of a warp say that it has read.
constexpr int kArrivals = kForRacecheck ? 32 : 1;
__device__ __forceinline__ bool arrives(int thread) { return kArrivals == 32 || thread % 32 == 0; }

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// Makes the initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// The same when loads from shared memory have brought `loaded`, every bit of which may be anything.  A plain arrival
// does not wait for them: behind global stores that memory does not take yet, a load lasts longer than the copy that
// overwrites its source once everybody has arrived.
__device__ __forceinline__ void barrier_arrive_after(uint64_t* barrier, uint32_t loaded) {
  asm volatile(
      "{\n"
      ".reg .b32 one;\n"
      "or.b32 one, %1, 1;\n"
      "min.u32 one, one, 1;\n"
      "mbarrier.arrive.shared::cta.b64 _, [%0], one;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(loaded)
      : "memory");
}

__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Bytes that are on their way already, without the arrival: the phase ends with that and with all bytes.
__device__ __forceinline__ void barrier_expect_early(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Nobody waits for it, no bytes are under way to it: it may be initialised anew.
__device__ __forceinline__ void barrier_end(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// All threads of the warp that come here come together: the branches are declared uniform, so that what depends on them
// stays in uniform registers.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra.uni AGAIN;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The same in two halves, so that the answer's latency passes under other work: ask once, later insist.
__device__ __forceinline__ uint32_t barrier_ask(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done;
}
__device__ __forceinline__ void barrier_insist(uint32_t answer, uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "setp.ne.u32 done, %2, 0;\n"
      "@done bra.uni OUT;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra.uni AGAIN;\n"
      "OUT:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity), "r"(answer)
      : "memory");
}

// At the same barrier of another block of the cluster.  Without a scope of its own, as everybody's pipelines do it: a
// release to the cluster would be a fence of all memory, and copies are ordered by the barrier alone.
__device__ __forceinline__ void barrier_arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// All threads of all blocks of the cluster.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// What another block of the cluster has in its shared memory at the same place.
__device__ __forceinline__ int load_of_block(const int* shared, uint32_t rank) {
  int v;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.b32 %0, [there];\n"
      "}\n"
      : "=r"(v)
      : "r"(shared_address(shared)), "r"(rank)
      : "memory");
  return v;
}

// Loads from shared memory by its own addresses, which are half as long as pointers.
__device__ __forceinline__ int4 load_shared_16(uint32_t address) {
  int4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void load_shared_8(uint32_t address, uint32_t& a, uint32_t& b) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(address) : "memory");
}
__device__ __forceinline__ uint32_t load_shared_4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}

// Two 8 x 8 matrices of 16 bits, held as wgmma's accumulators are, columns as rows of 16 bytes: lane l names the place of
// column l % 8 of the first (l < 8) or second.
__device__ __forceinline__ void store_transposed(uint32_t address, uint32_t first, uint32_t second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(first), "r"(second)
               : "memory");
}

// A warpgroup changes how many registers each of its threads owns.
template <int kCount>
__device__ __forceinline__ void registers_give() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void registers_take() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// A barrier among some of the block's threads (ids 1..15; 0 is __syncthreads).
__device__ __forceinline__ void named_barrier(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace w4afp8::ptx
