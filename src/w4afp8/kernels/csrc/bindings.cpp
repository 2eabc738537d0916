// The kernels as torch ops, `w4afp8_sm90::*`, through torch's stable ABI: one build serves every torch from 2.10 on.
// Shapes and types are checked by w4afp8.kernels.checks; here only what a wrong pointer would turn into a fault.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <optional>
#include <string>

#include "sm90/grouped_gemm/launch.h"
#include "sm90/moe/launch.h"
#include "sm90/moe/layer/launch.h"

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
                  const std::optional<Tensor>& offsets, const Tensor& out, bool weights_ready, std::string schedule,
                  int64_t split_groups) {
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
  p.weights_ready = weights_ready;
  p.split_groups = static_cast<int>(split_groups);
  require_ok("grouped_gemm", w4afp8::grouped_gemm::run(schedule.c_str(), p, current_stream(x)));
}

w4afp8::moe::InType in_type(const Tensor& x) {
  using w4afp8::moe::InType;
  if (x.scalar_type() == ScalarType::BFloat16) return InType::kBFloat16;
  return x.scalar_type() == ScalarType::Half ? InType::kFloat16 : InType::kFloat32;
}

const float* floats(const std::optional<Tensor>& x) {
  return x.has_value() ? static_cast<const float*>(x->data_ptr()) : nullptr;
}

w4afp8::moe::Quantize quantize_params(const Tensor& x, const std::optional<Tensor>& static_scale, const Tensor& q,
                                      const Tensor& scale, int64_t mode) {
  w4afp8::moe::Quantize p{};
  p.x = x.data_ptr();
  p.type = in_type(x);
  p.tokens = static_cast<int>(x.size(0));
  p.cols = static_cast<int>(x.size(1));
  p.mode = static_cast<w4afp8::moe::ScaleMode>(mode);
  p.static_scale = floats(static_scale);
  p.q = static_cast<uint8_t*>(q.data_ptr());
  p.scale = static_cast<float*>(scale.data_ptr());
  return p;
}

void quantize(const Tensor& x, const std::optional<Tensor>& static_scale, const Tensor& q, const Tensor& scale,
              int64_t mode) {
  require_ok("quantize_fp8", w4afp8::moe::quantize(quantize_params(x, static_scale, q, scale, mode), current_stream(x)));
}

w4afp8::moe::Routing routing_params(const Tensor& topk_ids, int64_t expert_begin, int64_t experts, const Tensor& rows) {
  w4afp8::moe::Routing r{};
  r.ids = topk_ids.data_ptr();
  r.ids_64 = topk_ids.scalar_type() == ScalarType::Long;
  r.tokens = static_cast<int>(topk_ids.size(0));
  r.top_k = static_cast<int>(topk_ids.size(1));
  r.expert_begin = static_cast<int>(expert_begin);
  r.experts = static_cast<int>(experts);
  r.rows = static_cast<int*>(rows.data_ptr());
  return r;
}

void route_quantize(const Tensor& x, const std::optional<Tensor>& static_scale, const Tensor& topk_ids,
                    int64_t expert_begin, const Tensor& q, const Tensor& scale, const Tensor& rows,
                    const Tensor& offsets) {
  auto r = routing_params(topk_ids, expert_begin, offsets.size(0) - 1, rows);
  r.offsets = static_cast<int*>(offsets.data_ptr());
  const bool few = r.tokens * r.top_k <= w4afp8::moe::kSmallPairs;
  if (!few) require_ok("fused_moe", w4afp8::moe::route(r, current_stream(x)));
  const auto p = quantize_params(x, static_scale, q, scale, static_scale.has_value() ? 1 : 0);
  require_ok("fused_moe", w4afp8::moe::scatter_quantize(p, r, few, current_stream(x)));
}

w4afp8::moe::Swiglu swiglu_params(std::optional<double> limit, double alpha, double beta) {
  return {static_cast<float>(limit.value_or(INFINITY)), static_cast<float>(alpha), static_cast<float>(beta)};
}

void swiglu_quantize(const Tensor& gate_up, const Tensor& offsets, const std::optional<Tensor>& static_scale,
                     const Tensor& q, const Tensor& scale, std::optional<double> limit, double alpha, double beta) {
  w4afp8::moe::Activation p{};
  p.gate_up = gate_up.data_ptr();
  p.type = in_type(gate_up);
  p.rows = static_cast<const int*>(offsets.data_ptr()) + offsets.size(0) - 1;
  p.max_rows = static_cast<int>(gate_up.size(0));
  p.cols = static_cast<int>(gate_up.size(1)) / 2;
  p.swiglu = swiglu_params(limit, alpha, beta);
  p.static_scale = floats(static_scale);
  p.q = static_cast<uint8_t*>(q.data_ptr());
  p.scale = static_cast<float*>(scale.data_ptr());
  require_ok("fused_moe", w4afp8::moe::activate(p, current_stream(gate_up)));
}

void combine(const Tensor& down, const Tensor& rows, const Tensor& weights, double factor, const Tensor& out) {
  w4afp8::moe::Combine p{};
  p.down = down.data_ptr();
  p.type = in_type(down);
  p.rows = static_cast<const int*>(rows.data_ptr());
  p.weights = static_cast<const float*>(weights.data_ptr());
  p.tokens = static_cast<int>(weights.size(0));
  p.top_k = static_cast<int>(weights.size(1));
  p.cols = static_cast<int>(down.size(1));
  p.factor = static_cast<float>(factor);
  p.out = out.data_ptr();
  require_ok("fused_moe", w4afp8::moe::combine(p, current_stream(down)));
}

w4afp8::moe::layer::Weight layer_weight(const Tensor& codes, const Tensor& scale) {
  return {static_cast<const uint8_t*>(codes.data_ptr()), scale.data_ptr(), scale.scalar_type() == ScalarType::Float,
          static_cast<int>(codes.size(1)), static_cast<int>(codes.size(2))};
}

void fused_layer(const Tensor& x, const Tensor& topk_ids, const Tensor& weights, int64_t expert_begin, const Tensor& w13,
                 const Tensor& w13_scale, const Tensor& w2, const Tensor& w2_scale,
                 const std::optional<Tensor>& w13_input_scale, const std::optional<Tensor>& w2_input_scale,
                 std::optional<double> limit, double alpha, double beta, double factor, const Tensor& rows,
                 const Tensor& q13, const Tensor& q13_scale, const Tensor& activated, const Tensor& q2,
                 const Tensor& q2_scale, const Tensor& down, const Tensor& out, std::string kernel) {
  w4afp8::moe::layer::Layer p{};
  p.routing = routing_params(topk_ids, expert_begin, w13.size(0), rows);
  p.x = x.data_ptr();
  p.type = in_type(x);
  p.weight[0] = layer_weight(w13, w13_scale);
  p.weight[1] = layer_weight(w2, w2_scale);
  p.hidden = p.weight[0].groups * 128;
  p.inner = p.weight[1].groups * 128;
  p.static_scale[0] = floats(w13_input_scale);
  p.static_scale[1] = floats(w2_input_scale);
  p.swiglu = swiglu_params(limit, alpha, beta);
  p.weights = static_cast<const float*>(weights.data_ptr());
  p.factor = static_cast<float>(factor);
  p.out = out.data_ptr();
  p.q[0] = static_cast<uint8_t*>(q13.data_ptr());
  p.q[1] = static_cast<uint8_t*>(q2.data_ptr());
  p.q_scale[0] = static_cast<float*>(q13_scale.data_ptr());
  p.q_scale[1] = static_cast<float*>(q2_scale.data_ptr());
  p.activated = static_cast<float*>(activated.data_ptr());
  p.down = down.data_ptr();
  require_ok("fused_moe", w4afp8::moe::layer::run(kernel.c_str(), p, current_stream(x)));
}

}  // namespace

STABLE_TORCH_LIBRARY(w4afp8_sm90, m) {
  m.def(
      "grouped_gemm(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? offsets, Tensor(a!) out, "
      "bool weights_ready, str schedule, int split_groups) -> ()");
  m.def("quantize(Tensor x, Tensor? static_scale, Tensor(a!) q, Tensor(b!) scale, int mode) -> ()");
  m.def(
      "route_quantize(Tensor x, Tensor? static_scale, Tensor topk_ids, int expert_begin, Tensor(a!) q, "
      "Tensor(b!) scale, Tensor(c!) rows, Tensor(d!) offsets) -> ()");
  m.def(
      "swiglu_quantize(Tensor gate_up, Tensor offsets, Tensor? static_scale, Tensor(a!) q, Tensor(b!) scale, "
      "float? limit, float alpha, float beta) -> ()");
  m.def(
      "fused_layer(Tensor x, Tensor topk_ids, Tensor weights, int expert_begin, Tensor w13, Tensor w13_scale, Tensor w2, "
      "Tensor w2_scale, Tensor? w13_input_scale, Tensor? w2_input_scale, float? limit, float alpha, float beta, "
      "float factor, Tensor(a!) rows, Tensor(b!) q13, Tensor(c!) q13_scale, Tensor(d!) activated, Tensor(e!) q2, "
      "Tensor(f!) q2_scale, Tensor(g!) down, Tensor(h!) out, str kernel) -> ()");
  m.def("combine(Tensor down, Tensor rows, Tensor weights, float factor, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(w4afp8_sm90, CUDA, m) {
  m.impl("grouped_gemm", TORCH_BOX(&grouped_gemm));
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("route_quantize", TORCH_BOX(&route_quantize));
  m.impl("swiglu_quantize", TORCH_BOX(&swiglu_quantize));
  m.impl("fused_layer", TORCH_BOX(&fused_layer));
  m.impl("combine", TORCH_BOX(&combine));
}
