// What a consumer warpgroup does with a segment: unpack, multiply, promote, stage by stage.  Decode waits for memory,
// so the order inside a stage is plain; the four warpgroups fill each other's pauses.
#pragma once
#include "../../../ptx/mbarrier.cuh"
#include "../../../ptx/wgmma.cuh"
#include "../../grouped_gemm/dequantize.cuh"
#include "load.cuh"

namespace w4afp8::moe::layer {

// What a consumer thread knows for the whole kernel; the addresses are in shared memory.
struct Place {
  int consumer, thread;
  uint32_t codes, scale;     // its codes in stage 0; the stage's scales (where its own are depends on their type)
  uint32_t staged, fetched;  // of a down tile on its way out: where its column is stored, which bytes it takes
  int out;                   // and where these go, from the tile's first value in `down`
};

template <class C>
__device__ __forceinline__ Place find_place(const typename C::Smem& smem, int hidden) {
  Place at;
  at.consumer = __shfl_sync(~0u, threadIdx.x / 128, 0);
  at.thread = threadIdx.x % 128;
  at.codes = ptx::shared_address(smem.stage[0].codes[at.consumer]) + at.thread * 16;
  at.scale = ptx::shared_address(smem.stage[0].scale);
  const int warp = at.thread / 32, lane = at.thread % 32;
  const uint32_t staging = ptx::shared_address(smem.out[at.consumer][warp]);
  const auto place = [&](int token, int half) { return staging + token * 32 + (half ^ token / 4 % 2) * 16; };  // banks
  at.staged = place(lane % 8, lane / 8 % 2);
  at.fetched = place(lane / 2, lane % 2);
  at.out = lane / 2 * hidden + at.consumer * kTileRows + warp * 16 + lane % 2 * 8;
  // Opaque to the compiler, which would otherwise compute all this again for every tile.
  asm volatile("" : "+r"(at.codes), "+r"(at.scale), "+r"(at.staged), "+r"(at.fetched), "+r"(at.out));
  return at;
}

// One group of 128 inputs: A fragments of four multiplies.
__device__ __forceinline__ void unpack_group(uint32_t (&a)[16], uint32_t codes, uint32_t minus_one) {
  const int4 first = ptx::load_shared_16(codes), second = ptx::load_shared_16(codes + kTileBytes / 2);
  const uint32_t words[8] = {uint32_t(first.x),  uint32_t(first.y),  uint32_t(first.z),  uint32_t(first.w),
                             uint32_t(second.x), uint32_t(second.y), uint32_t(second.z), uint32_t(second.w)};
#pragma unroll
  for (int i = 0; i < 8; ++i) grouped_gemm::unpack(words[i], minus_one, a[2 * i], a[2 * i + 1]);
}

// Scales of the thread's rows r and r + 8.
__device__ __forceinline__ float2 load_scale(uint32_t scale, int group, bool is_float) {
  uint32_t upper, lower;
  if (is_float) {
    ptx::load_shared_8(scale + group * (kTileRows * 4), upper, lower);
  } else {
    const uint32_t both = ptx::load_shared_4(scale + group * (kTileRows * 2));
    upper = both << 16, lower = both & 0xffff0000u;
  }
  return {__uint_as_float(upper), __uint_as_float(lower)};
}

template <int kTokens>
__device__ __forceinline__ void multiply_group(float (&product)[kTokens / 2], const uint32_t (&a)[16], const uint8_t* x) {
  const uint32_t rows = ptx::swizzled_rows(ptx::shared_address(x));
  ptx::wgmma_fence();
  ptx::Wgmma<kTokens>::template multiply<false>(product, a, rows);
#pragma unroll
  for (int k = 1; k < 4; ++k) ptx::Wgmma<kTokens>::template multiply<true>(product, a + 4 * k, rows + 2 * k);
  ptx::wgmma_commit();
}

template <int kTokens>
__device__ __forceinline__ void promote(float (&acc)[kTokens / 2], float (&product)[kTokens / 2], float2 scale) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    ptx::pin(product[i]);
    acc[i] += (i % 4 < 2 ? scale.x : scale.y) * product[i];
  }
}

__device__ __forceinline__ uint32_t bits(float2 v) { return __float_as_uint(v.x) | __float_as_uint(v.y); }

// acc: the segment's sum over K; x_scale: of the thread's tokens 8j + 2 * (lane % 4) and the next.
template <class C>
__device__ __forceinline__ void multiply(const Layer& p, typename C::Smem& smem, Ring<C::kStages>& ring,
                                         const Segment& s, const Place& at, float (&acc)[C::kTokens / 2],
                                         float2 (&x_scale)[C::kTokens / 8]) {
  constexpr int kTokens = C::kTokens;
  const bool scale_float = p.weight[s.phase].scale_float;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) acc[i] = 0.0f;
  const uint32_t thread_scale =
      at.scale + (at.consumer * (kStageGroups * kTileRows / 2) + at.thread / 4) * (scale_float ? 8 : 4);
#pragma unroll 1
  for (int i = 0; i < s.stages; ++i, ring.advance()) {
    auto& stage = smem.stage[ring.stage];
    const uint32_t offset = ring.stage * static_cast<uint32_t>(sizeof(typename C::Stage));
    ptx::barrier_wait(&smem.weights_full[ring.stage], ring.phase);
    uint32_t first[16], second[16];
    float even[kTokens / 2], odd[kTokens / 2];
    unpack_group(first, at.codes + offset, p.minus_one);
    ptx::barrier_wait(&smem.x_full[ring.stage], ring.phase);
    multiply_group<kTokens>(even, first, stage.x[0]);
    unpack_group(second, at.codes + offset + kTileBytes, p.minus_one);  // beside the multiply
#pragma unroll
    for (int j = 0; j < 16; ++j) ptx::pin(second[j]);  // else some of it slips between the second group's multiplies
    const float2 scale_even = load_scale(thread_scale + offset, 0, scale_float);
    const float2 scale_odd = load_scale(thread_scale + offset, 1, scale_float);
    multiply_group<kTokens>(odd, second, stage.x[1]);
    uint32_t loaded = bits(scale_even) | bits(scale_odd);
    if (i + 1 == s.stages) {
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        x_scale[j] = *reinterpret_cast<const float2*>(stage.x_scale + 8 * j + 2 * (at.thread % 4));
        loaded |= bits(x_scale[j]);
      }
    }
    ptx::wgmma_wait<0>();
    __syncwarp();
    if (ptx::arrives(at.thread)) ptx::barrier_arrive_after(&smem.empty[ring.stage], loaded);
    promote<kTokens>(acc, even, scale_even);
    promote<kTokens>(acc, odd, scale_odd);
  }
}

}  // namespace w4afp8::moe::layer
