// The CPU kernel against a plain double-precision loop, through the dispatcher, and what it refuses.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "checks.h"

// The schema is Python's (prism_fast/ops/logit_energy.py); this program has no Python, so it brings a copy.
TORCH_LIBRARY(prism_fast, m) {
  m.def(
      "logit_energy(Tensor logits, Tensor targets, float temperature, float free_weight, float class_weight, "
      "SymInt topk) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

static Outputs logit_energy(const at::Tensor& logits, const at::Tensor& targets, double temperature = 1,
                            double free_weight = 1, double class_weight = 1, int64_t topk = 0) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("prism_fast::logit_energy", "");
  c10::Stack stack{logits, targets, temperature, free_weight, class_weight, topk};
  op.callBoxed(&stack);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(), stack[3].toTensor(), stack[4].toTensor()};
}

// One image in double precision, all sums naive. f [K]
static void check_row(const std::vector<double>& f, int64_t y, double T, double free_weight, double class_weight,
                      int64_t members, double tolerance, const Outputs& outputs, int64_t b) {
  const auto& [stats, cotangent, indices, probabilities, remaining] = outputs;
  const int64_t K = static_cast<int64_t>(f.size()), k = indices.size(1);
  const double largest = *std::max_element(f.begin(), f.end());
  double sum = 0, tempered = 0, others = 0, weighted = 0;
  for (int64_t j = 0; j < K; ++j) {
    const double e = std::exp(f[j] - largest);
    sum += e;
    if (j != y) others += e;
    if (e > 0) weighted += e * (f[j] - largest);
    tempered += std::exp((f[j] - largest) / T);
  }
  const double free = -largest - T * std::log(tempered), cross_entropy = largest + std::log(sum) - f[y];
  const auto near = [&](const char* name, double got, double expected, double scale = 1) {
    const bool close = std::abs(got - expected) <= tolerance * std::max(scale, std::abs(expected));
    EXPECT(close, "%s of row %ld, K %ld: %.9g, expected %.9g", name, b, K, got, expected);
  };
  const auto stat = [&](int64_t i) { return stats[i][b].item<double>(); };
  // its two terms may cancel: what is rounded is their size
  const double terms = std::abs(free_weight * free) + std::abs(class_weight * cross_entropy);
  near("energy", stat(0), free_weight * free + class_weight * cross_entropy, std::max(1.0, terms));
  near("free", stat(1), free);
  near("joint", stat(2), -f[y]);
  near("cross_entropy", stat(3), cross_entropy);
  near("entropy", stat(4), std::log(sum) - weighted / sum);
  near("max_probability", stat(5), 1 / sum);

  std::vector<int64_t> order(K);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return f[i] > f[j]; });
  const auto p = [&](int64_t j) { return std::exp(f[j] - largest) / sum; };
  near("margin", stat(6), p(order[0]) - p(order[1]));
  double rest = 0;
  for (int64_t i = 0; i < K; ++i) {
    if (i >= k) {
      rest += p(order[i]);
      continue;
    }
    EXPECT(indices[b][i].item<int64_t>() == order[i], "index %ld of row %ld, K %ld, k %ld", i, b, K, k);
    near("probability", probabilities[b][i].item<double>(), p(order[i]));
  }
  near("remaining", remaining[b].item<double>(), rest);
  for (int64_t j = 0; j < K; ++j) {
    const double q = std::exp((f[j] - largest) / T) / tempered;
    const double expected = class_weight * (j == y ? -others / sum : p(j)) - free_weight * q;
    const auto row = cotangent.dim() == 3 ? cotangent[members - 1][b] : cotangent[b];
    const double got = row[j].item<double>(), unit = cotangent.scalar_type() == at::kFloat ? tolerance : 4e-3;
    EXPECT(std::abs(got - expected / members) <= unit, "cotangent [%ld, %ld]: %g, expected %g", b, j, got, expected);
  }
}

static void check_against_doubles(at::ScalarType dtype, int64_t members, int64_t B, int64_t K, double T, double spread,
                                  int64_t k) {
  const auto logits = (at::randn({members, B, K}) * spread).to(dtype);
  const auto targets = at::randint(K, {B}, at::kLong);
  const auto given = members == 1 ? logits[0] : logits;
  const auto outputs = logit_energy(given, targets, T, 0.7, 1.3, k);
  const auto mean = logits.to(at::kFloat).sum(0).div(static_cast<double>(members)).contiguous();  // as the kernel adds
  for (int64_t b = 0; b < B; ++b) {
    const float* row = mean.data_ptr<float>() + b * K;
    check_row({row, row + K}, targets[b].item<int64_t>(), T, 0.7, 1.3, members, 2e-6, outputs, b);
  }
}

static void check_special_rows() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  auto logits = at::randn({6, 37});
  logits[1][3] = nan;
  logits[2][36] = inf;
  logits[3].fill_(-inf);
  logits[4].fill_(-inf);
  logits[4][35] = 2.f;
  const auto targets = at::full({6}, 35, at::kLong);
  const auto plain = logit_energy(logits.index_select(0, at::tensor({0, 5})), targets.slice(0, 0, 2), 1, 1, 1, 3);
  const auto [stats, cotangent, indices, probabilities, remaining] = logit_energy(logits, targets, 1, 1, 1, 3);
  for (int64_t b : {1, 2, 3}) {
    EXPECT(stats.select(1, b).isnan().all().item<bool>(), "row %ld", b);
    EXPECT(cotangent[b].isnan().all().item<bool>(), "row %ld", b);
    EXPECT(probabilities[b].isnan().all().item<bool>() && remaining[b].isnan().item<bool>(), "row %ld", b);
    EXPECT(indices[b].equal(at::arange(3)), "row %ld", b);
  }
  EXPECT(stats[3][4].item<float>() == 0 && stats[4][4].item<float>() == 0 && stats[6][4].item<float>() == 1);
  EXPECT(indices[4].equal(at::tensor({35, 0, 1})));
  const auto kept = at::tensor({0, 5});
  EXPECT(stats.index_select(1, kept).equal(std::get<0>(plain)), "a special row changed its neighbours");
  EXPECT(cotangent.index_select(0, kept).equal(std::get<1>(plain)), "a special row changed its neighbours");
}

static void check_ties_and_threads() {
  const auto logits = at::randint(3, {129, 501}).to(at::kFloat);  // almost only ties
  const auto targets = at::randint(501, {129}, at::kLong);
  at::set_num_threads(1);
  const auto one = logit_energy(logits, targets, 2, 1, 1, 100);
  at::set_num_threads(2);
  const auto two = logit_energy(logits, targets, 2, 1, 1, 100);
  const auto few = logit_energy(logits, targets, 2, 1, 1, 9);
  const auto expected = std::get<1>(at::sort(logits, /*stable=*/true, /*dim=*/-1, /*descending=*/true));
  EXPECT(std::get<2>(two).equal(expected.slice(1, 0, 100)));
  EXPECT(std::get<2>(few).equal(expected.slice(1, 0, 9)));
  EXPECT(std::get<0>(one).equal(std::get<0>(two)) && std::get<1>(one).equal(std::get<1>(two)));
}

static void check_layouts() {
  const auto logits = at::randn({31, 8, 3}).permute({2, 1, 0});  // [3, 8, 31], classes apart
  const auto targets = at::randint(31, {16}, at::kLong).slice(0, 0, 16, 2);
  EXPECT(std::get<1>(logit_energy(logits, targets)).equal(std::get<1>(logit_energy(logits.contiguous(), targets))));
  const auto empty = logit_energy(at::empty({0, 5}), at::empty({0}, at::kLong), 1, 1, 1, 2);
  EXPECT(std::get<0>(empty).sizes() == at::IntArrayRef({7, 0}) &&
         std::get<2>(empty).sizes() == at::IntArrayRef({0, 2}));
}

static void check_refusals() {
  const auto f = at::randn({4, 5});
  const auto y = at::zeros({4}, at::kLong);
  EXPECT_THROWS(logit_energy(at::randn({4}), y), "logits: expected [B, K] or [M, B, K], got [4]");
  EXPECT_THROWS(logit_energy(f.to(at::kDouble), y), "logits: expected float32, float16 or bfloat16, got Double");
  EXPECT_THROWS(logit_energy(at::randn({0, 4, 5}), y), "at least one member, got [0, 4, 5]");
  EXPECT_THROWS(logit_energy(at::randn({4, 1}), y), "at least two classes, got [4, 1]");
  EXPECT_THROWS(logit_energy(f, y.to(at::kInt)), "targets: expected int64, got Int");
  EXPECT_THROWS(logit_energy(f, y.slice(0, 0, 3)), "targets: expected [4], got [3]");
  EXPECT_THROWS(logit_energy(f, y + 5), "targets: expected 0 to 4, got 5");
  EXPECT_THROWS(logit_energy(f, y - 1), "targets: expected 0 to 4, got -1");
  EXPECT_THROWS(logit_energy(f, y, 0), "temperature: expected a positive finite number, got 0");
  EXPECT_THROWS(logit_energy(f, y, std::nan("")), "temperature: expected a positive finite number, got nan");
  EXPECT_THROWS(logit_energy(f, y, 1, 1, 1, 6), "topk: expected 0 to 5, got 6");
}

// Whether this processor can run what ATEN_CPU_CAPABILITY asks torch for; torch itself does not look.
static bool processor_has_capability() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string capability = wanted ? wanted : "default";
  if (capability == "avx512") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  if (capability == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

int main(int count, char** arguments) {        // [seed]
  if (!processor_has_capability()) return 77;  // ctest: skipped
  const uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : std::random_device{}();
  at::manual_seed(seed);
  std::printf("seed %llu (an argument replays it)\n", static_cast<unsigned long long>(seed));
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16})
    for (const int64_t K : {2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 331})
      for (const int64_t members : {1, 3})
        check_against_doubles(dtype, members, 3, K, K % 2 ? 1.0 : 2.5, K % 3 ? 1 : 12, std::min<int64_t>(K, 5));
  check_against_doubles(at::kFloat, 2, 2, 331, 0.5, 5, 331);  // k beyond the insertion
  check_special_rows();
  check_ties_and_threads();
  check_layouts();
  check_refusals();
  std::printf("%s: %d failures\n", at::get_cpu_capability().c_str(), failures);
  return failures != 0;
}
