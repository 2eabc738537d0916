// Times the one-launch layer without torch: a replayed graph over several routings, weights far larger than L2.
//
//   cd benchmarks; C=../src/w4afp8/kernels/csrc
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I$C [-DTOKENS=16 | -DFEW] kernel_layer_driver.cu
//     $C/sm90/grouped_gemm/workspace.cu -o layer_driver
//   ./layer_driver 1,8,64 HIDDEN INNER EXPERTS_HERE EXPERTS_ROUTED TOP_K [once]
//
// One line a token count: the floor at 4.556 TB/s, microseconds, their ratio, and a hash of all outputs, the same in
// every version that adds in the same order.  `once` runs every routing twice and times nothing: what the memory and
// race checkers look at.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "sm90/moe/layer/launch.cuh"

#ifndef TOKENS
#define TOKENS 8
#endif

using namespace w4afp8::moe;
using namespace w4afp8::moe::layer;
#ifdef FEW  // pairs, up to 64 a call
using Kernel = Config<8, 5, true>;
#else
using Kernel = Config<TOKENS, 5>;
#endif

enum class Fill { kBits, kHalfScales, kNormalish };

__global__ void fill(uint32_t* words, size_t count, uint32_t seed, Fill kind) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed;
    h ^= h >> 16, h *= 0x85ebca6bu, h ^= h >> 13, h *= 0xc2b2ae35u, h ^= h >> 16;
    words[i] = kind == Fill::kBits         ? h
               : kind == Fill::kHalfScales ? 0x3c003c00u | (h & 0x007f007fu)
                                           : (h & 0x807f807fu) | 0x3f003f00u;
  }
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* filled(size_t bytes, uint32_t seed, Fill kind) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes));
  fill<<<1024, 256>>>(static_cast<uint32_t*>(memory), bytes / 4, seed, kind);
  return static_cast<T*>(memory);
}

// A token's choices are distinct, uniform over the routed experts; returns how many of the experts here were hit.
int route(std::mt19937& random, int tokens, int top_k, int here, int routed, std::vector<int>& ids) {
  std::vector<char> hit(here);
  for (int t = 0; t < tokens; ++t) {
    for (int k = 0; k < top_k; ++k) {
      auto* own = ids.data() + t * top_k;
      do own[k] = static_cast<int>(random() % routed);
      while (std::find(own, own + k, own[k]) != own + k);
      if (own[k] < here) hit[own[k]] = 1;
    }
  }
  return static_cast<int>(std::count(hit.begin(), hit.end(), 1));
}

// FNV-1a of what a call wrote, begun with `hash`.
uint64_t hash_output(const Layer& call, uint64_t hash) {
  std::vector<uint16_t> values(static_cast<size_t>(call.routing.tokens) * call.hidden);
  check(cudaMemcpy(values.data(), call.out, values.size() * 2, cudaMemcpyDeviceToHost));
  for (const uint16_t v : values) hash = (hash ^ v) * 0x100000001b3u;
  return hash;
}

int main(int count, char** words) {
  if (count < 7) return std::fprintf(stderr, "see the top of the source\n"), 2;
  const size_t hidden = std::atoi(words[2]), inner = std::atoi(words[3]), experts = std::atoi(words[4]);
  const int routed = std::atoi(words[5]), top_k = std::atoi(words[6]);
  const bool once = count > 7;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  Layer shape{};
  shape.hidden = static_cast<int>(hidden), shape.inner = static_cast<int>(inner);
  shape.type = InType::kBFloat16;
  shape.swiglu = {1e30f, 1.0f, 0.0f};
  shape.factor = 1.0f;
  const size_t codes[2] = {experts * inner * hidden, experts * inner * hidden / 2};
  for (int i : {0, 1}) {
    const size_t rows = i == 0 ? 2 * inner : hidden, cols = i == 0 ? hidden : inner;
    shape.weight[i] = {filled<uint8_t>(codes[i], i, Fill::kBits), filled<void>(codes[i] / 32, i, Fill::kHalfScales),
                       false, static_cast<int>(rows / 64), static_cast<int>(cols / 128)};
  }
  for (char* at = words[1]; *at != 0; at += *at == ',') {
    const int tokens = static_cast<int>(std::strtol(at, &at, 10)), sets = tokens <= 64 ? 8 : 4;
    const size_t pairs = static_cast<size_t>(tokens) * top_k, eights = pairs / 8 + std::min(pairs, experts);
    std::mt19937 random(tokens);
    std::vector<Layer> calls;
    double bytes = 0;
    for (int set = 0; set < sets; ++set) {
      std::vector<int> ids(pairs);
      const int hit = route(random, tokens, top_k, static_cast<int>(experts), routed, ids);
      bytes += hit * (codes[0] + codes[1]) / experts * (1 + 1.0 / 32) + 4.0 * tokens * hidden;
      Layer call = shape;
      int* on_device = filled<int>(pairs * 4, 0, Fill::kBits);
      check(cudaMemcpy(on_device, ids.data(), pairs * 4, cudaMemcpyHostToDevice));
      int* rows = filled<int>(pairs * 4, 0, Fill::kBits);
      call.routing = {on_device, false, tokens, top_k, 0, static_cast<int>(experts), rows, nullptr};
      call.x = filled<void>(tokens * hidden * 2, set, Fill::kNormalish);
      call.weights = filled<float>(pairs * 4, set, Fill::kHalfScales);
      call.out = filled<void>(tokens * hidden * 2, 0, Fill::kBits);
      call.activated = filled<float>(pairs * inner * 4, 0, Fill::kBits);
      call.down = filled<void>(pairs * hidden * 2, 0, Fill::kBits);
      for (int i : {0, 1}) {
        call.q[i] = filled<uint8_t>(eights * 8 * (i == 0 ? hidden : inner), 0, Fill::kBits);
        call.q_scale[i] = filled<float>(eights * 32, 0, Fill::kBits);
      }
      calls.push_back(call);
    }
    check(cudaDeviceSynchronize());
    const double floor = bytes / sets / 4.556e6;
    const int rounds = once ? 2 : std::max(1, std::min(64 / sets, static_cast<int>(600 / (floor * sets)) + 1));
    const auto run = [&] {
      for (int round = 0; round < rounds; ++round) {
        for (const Layer& call : calls) {
          if (const char* wrong = launch<Kernel>(call, stream)) std::exit(std::fprintf(stderr, "%s\n", wrong));
        }
      }
    };
    run();
    check(cudaStreamSynchronize(stream));
    const auto hash_all = [&] {
      uint64_t hash = 0xcbf29ce484222325u;
      for (const Layer& call : calls) hash = hash_output(call, hash);
      return static_cast<unsigned long long>(hash);
    };
    const unsigned long long hash = hash_all();
    if (once) {
      std::printf("M=%d ran, hash %016llx\n", tokens, hash);
      continue;
    }
    cudaGraph_t graph;
    cudaGraphExec_t replayed;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    run();
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&replayed, graph, 0));
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin));
    check(cudaEventCreate(&end));
    std::vector<float> times;
    for (int i = 0; i < 17; ++i) {
      float ms = 0;
      check(cudaEventRecord(begin, stream));
      check(cudaGraphLaunch(replayed, stream));
      check(cudaEventRecord(end, stream));
      check(cudaStreamSynchronize(stream));
      check(cudaEventElapsedTime(&ms, begin, end));
      if (i > 1) times.push_back(ms * 1e3f / static_cast<float>(rounds * sets));
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    const char* same = hash_all() == hash ? "" : " and another after the replays";
    std::printf("M=%d floor %.1f us %.2f (%.2f) hash %016llx%s\n", tokens, floor, median, median / floor, hash, same);
    std::fflush(stdout);
  }
}
