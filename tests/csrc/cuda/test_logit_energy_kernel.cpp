// The CUDA kernel, thread by thread on the CPU, beside the CPU kernel: every way in which it can be launched.
#include "../emulated_cuda.h"
//
#include "logit_energy_kernel.cuh"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <random>

#include "../checks.h"

TORCH_LIBRARY(prism_fast, m) {
  m.def(
      "logit_energy(Tensor logits, Tensor targets, float temperature, float free_weight, float class_weight, "
      "SymInt topk) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

using prism_fast::LogitEnergyCall;
using Outputs = prism_fast::LogitEnergyOutputs;

struct Case {
  at::Tensor logits, targets;
  double temperature, free_weight, class_weight;
  int64_t topk;
};

// A target that is no class is refused there; here its row is as one that has a NaN.
static Outputs on_cpu(const Case& one) {
  const at::Tensor unknown = one.targets.lt(0).logical_or(one.targets.ge(one.logits.size(-1)));
  const at::Tensor logits = one.logits.masked_fill(unknown.unsqueeze(-1), NAN);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("prism_fast::logit_energy", "");
  c10::Stack stack{logits,  one.targets.masked_fill(unknown, 0), one.temperature, one.free_weight, one.class_weight,
                   one.topk};
  op.callBoxed(&stack);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(), stack[3].toTensor(), stack[4].toTensor()};
}

template <bool kAlone, bool kKept, typename T, int kVec>
static Outputs emulated_kernel(const Case& one, int threads) {
  at::Tensor logits = one.logits, targets = one.targets;
  Outputs outputs;
  const LogitEnergyCall call = prism_fast::prepare_logit_energy(logits, targets, one.temperature, one.free_weight,
                                                                one.class_weight, one.topk, outputs);
  const auto rows = kAlone ? threads / 32 : 1;
  const auto blocks = static_cast<unsigned>((call.batch + rows - 1) / rows);
  emulated::emulate(blocks, threads, [&] { prism_fast::logit_energy_kernel<kAlone, kKept, T, kVec>(call); });
  return outputs;
}

static void compare(const char* name, const at::Tensor& got, const at::Tensor& want, double tolerance) {
  const bool alike = got.sizes() == want.sizes() &&
                     at::allclose(got.to(at::kDouble), want.to(at::kDouble), tolerance, tolerance, /*equal_nan=*/true);
  EXPECT(alike, "%s differs by %g", name, (got.to(at::kDouble) - want.to(at::kDouble)).abs().max().item<double>());
}

static void compare(const Outputs& got, const Outputs& want) {
  // two roundings of the cotangent's type may differ by one step
  const double step = std::get<1>(want).scalar_type() == at::kFloat ? 2e-5 : 1e-2;
  compare("stats", std::get<0>(got), std::get<0>(want), 2e-5);
  compare("cotangent", std::get<1>(got), std::get<1>(want), step);
  EXPECT(std::get<2>(got).equal(std::get<2>(want)), "%s", "indices differ");
  compare("probabilities", std::get<3>(got), std::get<3>(want), 2e-5);
  compare("remaining", std::get<4>(got), std::get<4>(want), 2e-5);
}

template <bool kAlone, typename T>
static void check(const Case& one, int threads) {
  constexpr int kVec = 16 / sizeof(T);
  const Outputs want = on_cpu(one);
  compare(emulated_kernel<kAlone, false, T, 1>(one, threads), want);
  const bool kept = one.topk <= prism_fast::kListed;
  if (kept) compare(emulated_kernel<kAlone, true, T, 1>(one, threads), want);
  if (one.logits.size(-1) % kVec != 0) return;
  compare(emulated_kernel<kAlone, false, T, kVec>(one, threads), want);
  if (kept) compare(emulated_kernel<kAlone, true, T, kVec>(one, threads), want);
}

// Some rows are special: NaN, infinities, no class, equal logits, nothing but -inf beside one.
static Case drawn(std::mt19937& random, at::ScalarType dtype, int64_t members, int64_t batch, int64_t classes) {
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  at::Tensor logits = at::randn({members, batch, classes}) * (1 + pick(8));
  at::Tensor targets = at::randint(classes, {batch}, at::kLong);
  for (int64_t b = 0; b < batch; ++b) {
    at::Tensor row = logits.select(0, pick(members)).select(0, b);
    switch (pick(9)) {
      case 0:
        row[pick(classes)] = NAN;
        break;
      case 1:
        row[pick(classes)] = INFINITY;
        break;
      case 2:
        targets[b] = pick(2) ? -1 : classes;
        break;
      case 3:
        logits.select(1, b).copy_(logits.select(1, b).round());
        break;
      case 4:
        row.slice(0, 0, classes - 1).fill_(-INFINITY);
        break;
      default:
        break;
    }
  }
  if (members == 1) logits = logits[0];
  const int64_t most = std::min<int64_t>(classes, pick(3) ? 8 : 12);
  return {logits.to(dtype).contiguous(), targets, pick(2) ? 1.0 : 2.5, 1.0, pick(2) ? 0.7 : 0.0, pick(most + 1)};
}

template <typename T>
static void check_all(std::mt19937& random, at::ScalarType dtype) {
  for (const int64_t classes : {2, 3, 16, 33, 200, 1000, 1031}) {
    for (const int64_t members : {1, 3}) {
      const Case one = drawn(random, dtype, members, 7, classes);
      check<true, T>(one, 128);
      check<false, T>(one, 64);
      if (classes == 1000) check<false, T>(one, 512);
    }
  }
}

int main(int count, char** arguments) {  // [seed]
  const unsigned seed = count > 1 ? std::strtoul(arguments[1], nullptr, 10) : std::random_device{}();
  std::printf("seed %u (an argument replays it)\n", seed);
  std::mt19937 random(seed);
  at::manual_seed(seed);
  check_all<float>(random, at::kFloat);
  check_all<__half>(random, at::kHalf);
  check_all<__nv_bfloat16>(random, at::kBFloat16);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
