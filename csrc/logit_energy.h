// prism_fast::logit_energy. Its schema, equations and special rows are in prism_fast/ops/logit_energy.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace prism_fast {

// Rows of `stats`.
enum Stat : int { kEnergy, kFree, kJoint, kCrossEntropy, kEntropy, kMaxProbability, kMargin, kStats };

// Sizes, weights and contiguous memory of one call.
struct LogitEnergyCall {
  int64_t members;  // M
  int64_t batch;    // B
  int64_t classes;  // K
  int64_t topk;     // k
  float temperature;
  float free_weight;
  float class_weight;
  const void* logits;      // [M, B, K] float, Half or BFloat16
  const int64_t* targets;  // [B]
  float* stats;            // [7, B]
  void* cotangent;         // [M, B, K], as logits
  int64_t* indices;        // [B, k]
  float* probabilities;    // [B, k]
  float* remaining;        // [B]
};

using LogitEnergyOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Checks everything but the targets' values, makes the inputs contiguous (into `logits` and `targets`, which own them)
// and allocates the outputs that the returned call points into.
LogitEnergyCall prepare_logit_energy(at::Tensor& logits, at::Tensor& targets, double temperature, double free_weight,
                                     double class_weight, int64_t topk, LogitEnergyOutputs& outputs);

// Rows begin <= b < end on this thread; `scratch` holds three rows of padded_classes(K) floats.
using LogitEnergyRows = void (*)(const LogitEnergyCall& call, at::ScalarType dtype, int64_t begin, int64_t end,
                                 float* scratch);
inline int64_t padded_classes(int64_t classes) { return (classes + 63) / 64 * 64 + 64; }

void logit_energy_rows_default(const LogitEnergyCall&, at::ScalarType, int64_t, int64_t, float*);
void logit_energy_rows_avx2(const LogitEnergyCall&, at::ScalarType, int64_t, int64_t, float*);
void logit_energy_rows_avx512(const LogitEnergyCall&, at::ScalarType, int64_t, int64_t, float*);

}  // namespace prism_fast
