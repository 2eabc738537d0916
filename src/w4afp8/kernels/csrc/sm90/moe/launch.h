// What stands between the two GEMMs of a layer of routed experts: routing, quantizing, activation, the weighted sum.
// Every function returns null, or what went wrong.  A pair is one (token, choice): pair = token * top_k + choice.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace w4afp8::moe {

enum class InType : int { kBFloat16 = 0, kFloat16 = 1, kFloat32 = 2 };
enum class ScaleMode : int { kToken = 0, kTensor = 1, kGroup128 = 2 };

struct Routing {
  const void* ids;  // int32 or int64 [tokens, top_k], global expert ids
  bool ids_64;
  int tokens, top_k, expert_begin, experts;
  int* rows;        // [tokens * top_k]: the pair's row among the local experts' rows, or -1
  int* offsets;     // [experts + 1]
};

struct Quantize {
  const void* x;              // [tokens, cols]
  InType type;
  int tokens, cols;
  ScaleMode mode;
  const float* static_scale;  // one value, or null
  uint8_t* q;                 // e4m3; one row a token, or a routed pair's rows
  float* scale;               // [rows] (token), [1] (tensor), [rows, cols/128]
};

// gate * sigmoid(alpha * gate) * (up + beta), both limited first; limit: infinity for none.
struct Swiglu {
  float limit, alpha, beta;
};

struct Activation {
  const void* gate_up;  // [rows, 2 * cols], gate first
  InType type;          // 16 bit
  const int* rows;      // how many of them are there, on the device
  int max_rows, cols;
  Swiglu swiglu;
  const float* static_scale;
  uint8_t* q;
  float* scale;
};

struct Combine {
  const void* down;      // [rows, cols]
  InType type;           // 16 bit
  const int* rows;       // of each pair, or -1
  const float* weights;  // [tokens, top_k]
  int tokens, top_k, cols;
  float factor;
  void* out;             // [tokens, cols]
};

constexpr int kMaxTopK = 64;       // choices of a token
constexpr int kSmallPairs = 2048;  // up to here every block of the quantizer finds its own rows

const char* route(const Routing& r, cudaStream_t stream);
const char* quantize(const Quantize& p, cudaStream_t stream);
// Quantizes every token once and writes it to the rows of its pairs; with few pairs it routes as well.
const char* scatter_quantize(const Quantize& p, const Routing& r, bool routes, cudaStream_t stream);
const char* activate(const Activation& p, cudaStream_t stream);
const char* combine(const Combine& p, cudaStream_t stream);

}  // namespace w4afp8::moe
