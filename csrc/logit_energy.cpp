// prism_fast::logit_energy on the CPU: checks, memory, threads, registration. The arithmetic is in logit_energy_rows.h.
#include "logit_energy.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "checks.h"

namespace prism_fast {

LogitEnergyCall prepare_logit_energy(at::Tensor& logits, at::Tensor& targets, double temperature, double free_weight,
                                     double class_weight, int64_t topk, LogitEnergyOutputs& outputs) {
  check_logits(logits);
  check_targets(targets, logits);
  check_temperature(temperature);
  check_topk(topk, logits.size(-1));
  logits = logits.contiguous();
  targets = targets.contiguous();

  const int64_t batch = logits.size(-2);
  const auto fp32 = logits.options().dtype(at::kFloat);
  outputs = {at::empty({kStats, batch}, fp32), at::empty(logits.sizes(), logits.options()),
             at::empty({batch, topk}, logits.options().dtype(at::kLong)), at::empty({batch, topk}, fp32),
             at::empty({batch}, fp32)};
  auto& [stats, cotangent, indices, probabilities, remaining] = outputs;
  return {logits.dim() == 3 ? logits.size(0) : 1,
          batch,
          logits.size(-1),
          topk,
          static_cast<float>(temperature),
          static_cast<float>(free_weight),
          static_cast<float>(class_weight),
          logits.const_data_ptr(),
          targets.const_data_ptr<int64_t>(),
          stats.mutable_data_ptr<float>(),
          cotangent.mutable_data_ptr(),
          indices.mutable_data_ptr<int64_t>(),
          probabilities.mutable_data_ptr<float>(),
          remaining.mutable_data_ptr<float>()};
}

namespace {

constexpr int64_t kGrain = 32768;  // logits a thread takes at least: ATen's own grain

LogitEnergyRows rows_for_this_processor() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();  // follows ATEN_CPU_CAPABILITY, as torch's own kernels
  if (capability == "AVX512") return logit_energy_rows_avx512;
  if (capability == "AVX2") return logit_energy_rows_avx2;
#endif
  return logit_energy_rows_default;
}

LogitEnergyOutputs logit_energy_cpu(const at::Tensor& logits_in, const at::Tensor& targets_in, double temperature,
                                    double free_weight, double class_weight, int64_t topk) {
  at::Tensor logits = logits_in, targets = targets_in;
  LogitEnergyOutputs outputs;
  const LogitEnergyCall call =
      prepare_logit_energy(logits, targets, temperature, free_weight, class_weight, topk, outputs);
  for (int64_t b = 0; b < call.batch; ++b) {
    const int64_t y = call.targets[b];
    TORCH_CHECK_VALUE(y >= 0 && y < call.classes, "targets: expected 0 to ", call.classes - 1, ", got ", y);
  }

  static const LogitEnergyRows rows = rows_for_this_processor();
  const int64_t row_size = call.members * call.classes;
  const int64_t grain = std::max<int64_t>(1, kGrain / row_size);
  at::parallel_for(0, call.batch, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(3 * padded_classes(call.classes));
    rows(call, logits.scalar_type(), begin, end, scratch.data());
  });
  return outputs;
}

}  // namespace
}  // namespace prism_fast

TORCH_LIBRARY_IMPL(prism_fast, CPU, m) { m.impl("logit_energy", prism_fast::logit_energy_cpu); }
