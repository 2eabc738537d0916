// What a grouped GEMM is asked to do, with a shape behind every pointer.  Plain C++: no torch, no CUDA types.
#pragma once
#include <cstddef>
#include <cstdint>

namespace w4afp8::grouped_gemm {

enum class OutType : int { kBFloat16 = 0, kFloat16 = 1, kFloat32 = 2 };

struct Params {
  const void* x;             // e4m3 [tokens, cols], rows sorted by expert
  const float* x_scale;      // [1] (stride 0), [tokens] (stride 1) or [tokens, cols/128] (groups)
  const uint8_t* codes;      // sm90 layout: [experts, rows/64, cols/128, 4096]
  const void* weight_scale;  // bfloat16 or float [experts, rows/64, cols/128, 64]
  const void* offsets;       // int32 or int64 [experts + 1]; null: the one expert owns every row
  void* out;                 // [tokens, rows]
  int tokens, rows, cols, experts;
  int x_scale_stride;
  bool x_scale_groups;
  bool weight_scale_float;
  bool offsets_64;
  OutType out_type;
  bool weights_ready;  // does no kernel that may still run write the weights?
  int split_groups;  // 0: whole tiles only; n: the last wave is split along K into parts of at least n groups
};

}  // namespace w4afp8::grouped_gemm
