// The CPU kernel: one row after the other, vectorised over its classes. Each file that includes it is compiled for
// other vector instructions. Hence the unnamed namespace, and no containers: of an inline function that several files
// share, the linker keeps one copy, which an older processor may not be able to run.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "logit_energy.h"

namespace prism_fast {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline float sum_lanes(const Vec& vec) {
  float lanes[kLanes];
  vec.store(lanes);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// kParts vectors of floats hold one vector of T.
template <typename T>
struct Loader {
  static constexpr int64_t kParts = std::is_same_v<T, float> ? 1 : 2;
  static constexpr int64_t kStep = kParts * kLanes;

  static void load(const T* from, int64_t count, Vec (&to)[kParts]) {
    const auto packed =
        count == kStep ? at::vec::Vectorized<T>::loadu(from) : at::vec::Vectorized<T>::loadu(from, count);
    if constexpr (kParts == 1) {
      to[0] = packed;
    } else {
      std::tie(to[0], to[1]) = at::vec::convert_to_float<T>(packed);
    }
  }

  static at::vec::Vectorized<T> pack(const Vec (&from)[kParts]) {
    if constexpr (kParts == 1) {
      return from[0];
    } else {
      return at::vec::convert_from_float<T>(from[0], from[1]);
    }
  }
};

struct Largest {
  float first;  // NaN where the row has one
  float second;
};

// f[j] = mean over members of logits[m, b, j], padded with -inf to a whole number of steps.
template <typename T>
Largest load_mean(const LogitEnergyCall& call, int64_t b, float* f) {
  using L = Loader<T>;
  const int64_t K = call.classes;
  const T* row = static_cast<const T*>(call.logits) + b * K;
  const Vec lowest(-kInfinity), members(static_cast<float>(call.members));
  Vec first = lowest, second = lowest;
  for (int64_t j = 0; j < K; j += L::kStep) {
    const int64_t count = std::min(L::kStep, K - j);
    Vec value[L::kParts];
    L::load(row + j, count, value);
    for (int64_t m = 1; m < call.members; ++m) {
      Vec other[L::kParts];
      L::load(row + m * call.batch * K + j, count, other);
      for (int64_t i = 0; i < L::kParts; ++i) value[i] = value[i] + other[i];
    }
    for (int64_t i = 0; i < L::kParts; ++i) {
      Vec v = call.members > 1 ? value[i] / members : value[i];
      const int64_t valid = count - i * kLanes;
      if (valid < kLanes) v = valid > 0 ? Vec::set(lowest, v, valid) : lowest;
      v.store(f + j + i * kLanes);
      second = at::vec::maximum(second, at::vec::minimum(first, v));
      first = at::vec::maximum(first, v);
    }
  }
  float firsts[kLanes], seconds[kLanes];
  first.store(firsts);
  second.store(seconds);
  Largest largest{firsts[0], seconds[0]};
  for (int64_t i = 1; i < kLanes; ++i) {
    if (std::isnan(firsts[i])) largest.first = kNaN;
    if (std::isnan(largest.first)) break;
    largest.second = std::max({largest.second, std::min(largest.first, firsts[i]), seconds[i]});
    largest.first = std::max(largest.first, firsts[i]);
  }
  return largest;
}

// q[j] = exp((f[j] - largest) / T); returns their sum.
inline float exp_tempered(const float* f, int64_t K, float largest, float temperature, float* q) {
  const Vec shift(largest), t(temperature);
  Vec sum(0.f);
  for (int64_t j = 0; j < K; j += kLanes) {
    const Vec e = ((Vec::loadu(f + j) - shift) / t).exp();
    e.store(q + j);
    sum = sum + e;
  }
  return sum_lanes(sum);
}

struct Sums {
  float exps;
  float weighted;  // sum of e·log e
};

// e[j] = exp(f[j] - largest); returns the sums over them.
inline Sums exp_shifted(const float* f, int64_t K, float largest, float* e) {
  const Vec shift(largest), finite(std::numeric_limits<float>::lowest());
  Vec sum(0.f), weighted(0.f);
  for (int64_t j = 0; j < K; j += kLanes) {
    const Vec d = Vec::loadu(f + j) - shift;
    const Vec v = d.exp();
    v.store(e + j);
    sum = sum + v;
    weighted = weighted + v * at::vec::maximum(d, finite);  // 0·log 0 = 0
  }
  return {sum_lanes(sum), sum_lanes(weighted)};
}

// The k largest of f in falling order, the lowest index first among equals.
inline void select_largest(const float* f, int64_t K, int64_t k, int64_t* indices) {
  if (k > 64) {  // insertion would be quadratic in k
    // `indices` holds k entries only, so all K go through a heap of k
    const auto before = [f](int64_t i, int64_t j) { return f[i] > f[j] || (f[i] == f[j] && i < j); };
    for (int64_t i = 0; i < k; ++i) indices[i] = i;
    std::make_heap(indices, indices + k, before);  // its top is the last in order
    for (int64_t i = k; i < K; ++i) {
      if (!(f[i] > f[indices[0]])) continue;
      std::pop_heap(indices, indices + k, before);
      indices[k - 1] = i;
      std::push_heap(indices, indices + k, before);
    }
    std::sort_heap(indices, indices + k, before);
    return;
  }
  float values[64];
  const auto insert = [&](int64_t count, int64_t index) {  // among `count` entries; of k, the last falls off
    int64_t at = std::min(count, k - 1);
    for (; at > 0 && values[at - 1] < f[index]; --at) {
      values[at] = values[at - 1];
      indices[at] = indices[at - 1];
    }
    values[at] = f[index];
    indices[at] = index;
  };
  for (int64_t i = 0; i < k; ++i) insert(i, i);
  for (int64_t j = k; j < K; j += kLanes) {  // most vectors hold nothing larger than the k-th
    const int none = (1 << kLanes) - 1;
    if ((Vec::loadu(f + j) > Vec(values[k - 1])).zero_mask() == none) continue;
    for (int64_t i = j; i < std::min(j + kLanes, K); ++i)
      if (f[i] > values[k - 1]) insert(k, i);
  }
}

struct Softmaxes {
  const float* e;  // p = e / exps
  float exps;
  float others;    // sum of e but for the target's
  const float* q;  // softmax(f/T) = q / tempered
  float tempered;
};

// cotangent[m, b, :] = (class_weight·(p - onehot(y)) - free_weight·softmax(f/T)) / M
template <typename T>
void write_cotangent(const LogitEnergyCall& call, int64_t b, const Softmaxes& s) {
  using L = Loader<T>;
  const int64_t K = call.classes, y = call.targets[b];
  T* const row = static_cast<T*>(call.cotangent) + b * K;
  const float members = static_cast<float>(call.members);
  const bool same = s.e == s.q;  // T = 1: one product, which is exactly zero where the weights are equal
  const float p_scale = (same ? call.class_weight - call.free_weight : call.class_weight) / s.exps / members;
  const float q_scale = call.free_weight / s.tempered / members;
  for (int64_t j = 0; j < K; j += L::kStep) {
    Vec value[L::kParts];
    for (int64_t i = 0; i < L::kParts; ++i) {
      value[i] = Vec(p_scale) * Vec::loadu(s.e + j + i * kLanes);
      if (!same) value[i] = value[i] - Vec(q_scale) * Vec::loadu(s.q + j + i * kLanes);
    }
    const auto packed = L::pack(value);
    const int64_t count = std::min(L::kStep, K - j);
    for (int64_t m = 0; m < call.members; ++m) {
      T* const to = row + m * call.batch * K + j;
      count == L::kStep ? packed.store(to) : packed.store(to, count);
    }
  }
  // p_y - 1 is minus the probability of the others, which does not cancel where the target is certain
  const float target = -(call.class_weight * (s.others / s.exps) + call.free_weight * (s.q[y] / s.tempered)) / members;
  for (int64_t m = 0; m < call.members; ++m) row[m * call.batch * K + y] = static_cast<T>(target);
}

template <typename T>
void write_nan(const LogitEnergyCall& call, int64_t b) {
  const int64_t K = call.classes;
  for (int64_t i = 0; i < kStats; ++i) call.stats[i * call.batch + b] = kNaN;
  for (int64_t m = 0; m < call.members; ++m)
    std::fill_n(static_cast<T*>(call.cotangent) + (m * call.batch + b) * K, K, static_cast<T>(kNaN));
  for (int64_t i = 0; i < call.topk; ++i) {
    call.indices[b * call.topk + i] = i;
    call.probabilities[b * call.topk + i] = kNaN;
  }
  call.remaining[b] = kNaN;
}

// Probabilities of the k largest, and of the rest; clears the k largest in `e`.
inline void write_topk(const LogitEnergyCall& call, int64_t b, const float* f, float* e, float exps) {
  int64_t* const indices = call.indices + b * call.topk;
  if (call.topk > 0) select_largest(f, call.classes, call.topk, indices);
  for (int64_t i = 0; i < call.topk; ++i) {
    call.probabilities[b * call.topk + i] = e[indices[i]] / exps;
    e[indices[i]] = 0.f;  // summing what is left does not cancel as 1 - sum would
  }
  Vec rest(0.f);
  for (int64_t j = 0; j < call.classes; j += kLanes) rest = rest + Vec::loadu(e + j);
  call.remaining[b] = sum_lanes(rest) / exps;
}

template <typename T>
void row_energy(const LogitEnergyCall& call, int64_t b, float* f, float* e, float* q) {
  const int64_t K = call.classes, y = call.targets[b];
  const Largest largest = load_mean<T>(call, b, f);
  if (!std::isfinite(largest.first)) return write_nan<T>(call, b);

  const float target = f[y], d = target - largest.first;
  f[y] = -kInfinity;  // the sums over the others alone
  const Sums others = exp_shifted(f, K, largest.first, e);
  f[y] = target;
  e[y] = std::exp(d);
  const float exps = others.exps + e[y];
  const float weighted = others.weighted + (e[y] > 0 ? e[y] * d : 0.f);
  const float log_exps = d == 0 ? std::log1p(others.exps) : std::log(exps);

  const float t = call.temperature;
  const float tempered = t == 1 ? exps : exp_tempered(f, K, largest.first, t, q);
  const Softmaxes softmaxes{e, exps, others.exps, t == 1 ? e : q, tempered};

  const float free = -(largest.first + t * (t == 1 ? log_exps : std::log(tempered)));
  const float cross_entropy = log_exps - d;
  float energy = 0;  // a weight of zero drops its term, be it infinite
  if (call.class_weight != 0) energy += call.class_weight * cross_entropy;
  if (call.free_weight != 0) energy += call.free_weight * free;

  const auto stat = [&](Stat name, float value) { call.stats[name * call.batch + b] = value; };
  stat(kEnergy, energy);
  stat(kFree, free);
  stat(kJoint, -target);
  stat(kCrossEntropy, cross_entropy);
  stat(kEntropy, log_exps - weighted / exps);
  stat(kMaxProbability, 1 / exps);
  stat(kMargin, -std::expm1(largest.second - largest.first) / exps);

  write_cotangent<T>(call, b, softmaxes);
  write_topk(call, b, f, e, exps);
}

void logit_energy_rows(const LogitEnergyCall& call, at::ScalarType dtype, int64_t begin, int64_t end, float* scratch) {
  const int64_t padded = padded_classes(call.classes);
  float *f = scratch, *e = f + padded, *q = e + padded;
  std::fill_n(f, padded, -kInfinity);
  for (int64_t b = begin; b < end; ++b) {
    if (dtype == at::kFloat) {
      row_energy<float>(call, b, f, e, q);
    } else if (dtype == at::kHalf) {
      row_energy<at::Half>(call, b, f, e, q);
    } else {
      row_energy<at::BFloat16>(call, b, f, e, q);
    }
  }
}

}  // namespace
}  // namespace prism_fast
