// The kernels as torch ops, `w4afp8_sm90::*`, through torch's stable ABI: one build serves every torch from 2.10 on.
// Shapes and types are checked by w4afp8.kernels.checks; here only what a wrong pointer would turn into a fault.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>

#include "sm90/grouped_gemm/launch.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream);
  return static_cast<cudaStream_t>(stream);
}

void require_ok(const char* what, const char* wrong) { STD_TORCH_CHECK(wrong == nullptr, what, ": ", wrong); }

w4afp8::grouped_gemm::OutType out_type(const Tensor& out) {
  using w4afp8::grouped_gemm::OutType;
  if (out.scalar_type() == ScalarType::BFloat16) return OutType::kBFloat16;
  return out.scalar_type() == ScalarType::Half ? OutType::kFloat16 : OutType::kFloat32;
}

void grouped_gemm(const Tensor& x, const Tensor& x_scale, const Tensor& weight, const Tensor& weight_scale,
                  const std::optional<Tensor>& offsets, const Tensor& out, std::string schedule, int64_t split_groups) {
  w4afp8::grouped_gemm::Params p{};
  p.x = x.data_ptr();
  p.x_scale = static_cast<const float*>(x_scale.data_ptr());
  p.codes = static_cast<const uint8_t*>(weight.data_ptr());
  p.weight_scale = weight_scale.data_ptr();
  p.out = out.data_ptr();
  p.tokens = static_cast<int>(x.size(0));
  p.cols = static_cast<int>(x.size(1));
  p.rows = static_cast<int>(out.size(1));
  p.experts = static_cast<int>(weight.size(0));
  if (offsets.has_value()) {
    p.offsets = offsets->data_ptr();
    p.offsets_64 = offsets->scalar_type() == ScalarType::Long;
  }
  p.x_scale_groups = x_scale.dim() == 2;
  p.x_scale_stride = x_scale.numel() == 1 ? 0 : 1;
  p.weight_scale_float = weight_scale.scalar_type() == ScalarType::Float;
  p.out_type = out_type(out);
  p.split_groups = static_cast<int>(split_groups);
  require_ok("grouped_gemm", w4afp8::grouped_gemm::run(schedule.c_str(), p, current_stream(x)));
}

}  // namespace

STABLE_TORCH_LIBRARY(w4afp8_sm90, m) {
  m.def(
      "grouped_gemm(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? offsets, Tensor(a!) out, "
      "str schedule, int split_groups) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(w4afp8_sm90, CUDA, m) { m.impl("grouped_gemm", TORCH_BOX(&grouped_gemm)); }
