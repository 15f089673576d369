// Checks of an operator's arguments: a ValueError that names the argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>

namespace prism_fast {

inline void check_logits(const at::Tensor& logits) {  // [B, K] or [M, B, K]
  TORCH_CHECK_VALUE(logits.dim() == 2 || logits.dim() == 3, "logits: expected [B, K] or [M, B, K], got ",
                    logits.sizes());
  const auto dtype = logits.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
                    "logits: expected float32, float16 or bfloat16, got ", dtype);
  TORCH_CHECK_VALUE(logits.dim() == 2 || logits.size(0) >= 1, "logits: expected at least one member, got ",
                    logits.sizes());
  TORCH_CHECK_VALUE(logits.size(-1) >= 2, "logits: expected at least two classes, got ", logits.sizes());
}

inline void check_targets(const at::Tensor& targets, const at::Tensor& logits) {  // [B]
  TORCH_CHECK_VALUE(targets.scalar_type() == at::kLong, "targets: expected int64, got ", targets.scalar_type());
  TORCH_CHECK_VALUE(targets.dim() == 1 && targets.size(0) == logits.size(-2), "targets: expected [", logits.size(-2),
                    "], got ", targets.sizes());
  TORCH_CHECK_VALUE(targets.device() == logits.device(), "targets: expected device ", logits.device(), ", got device ",
                    targets.device());
}

inline void check_temperature(double temperature) {
  TORCH_CHECK_VALUE(temperature > 0 && std::isfinite(temperature),
                    "temperature: expected a positive finite number, got ", temperature);
}

inline void check_topk(int64_t topk, int64_t classes) {
  TORCH_CHECK_VALUE(topk >= 0 && topk <= classes, "topk: expected 0 to ", classes, ", got ", topk);
}

}  // namespace prism_fast
