// The kernel of prism_fast::logit_energy on CUDA: one warp per image while a row is short, one block where it is long.
// A row is read from memory once; later passes over it find it in the L1 and L2 caches, so no K is too long for shared
// memory or registers. Device code alone: tests/csrc compiles it for the CPU, thread by thread.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <climits>

#include "logit_energy.h"

namespace prism_fast {
namespace {

constexpr int kWarp = 32;
constexpr int kAloneThreads = 128;  // four rows a block
constexpr int kMaxThreads = 512;    // 1,024 leave 64 registers a thread, and the kernel spills
constexpr unsigned kAll = 0xffffffffu;
constexpr int kListed = 8;  // places that a thread keeps while it reads; more are found by a pass over the row each

// kVec neighbouring elements: 16 bytes where the rows are aligned to them, else one element.
template <typename T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T values[kVec];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void from_float(float x, float& to) { to = x; }
__device__ inline void from_float(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// The threads that share a row: a warp of the block (kAlone), or all of it.
template <bool kAlone>
struct Group {
  __device__ static int rank() { return kAlone ? threadIdx.x % kWarp : threadIdx.x; }
  __device__ static int size() { return kAlone ? kWarp : blockDim.x; }
  __device__ static int64_t row() {
    return kAlone ? static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp : blockIdx.x;
  }

  // Reduces over the group with warp shuffles; every thread gets the result. A block's `shared` holds one value a warp.
  template <typename V, typename Combine>
  __device__ static V reduce(V value, V identity, Combine combine, V* shared) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value = combine(value, value.shuffled(offset));
    if constexpr (!kAlone) {
      __syncthreads();  // the values of an earlier reduction have been read
      if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
      __syncthreads();
      value = threadIdx.x % kWarp < blockDim.x / kWarp ? shared[threadIdx.x % kWarp] : identity;
      for (int offset = kWarp / 2; offset > 0; offset /= 2) value = combine(value, value.shuffled(offset));
    }
    return value;
  }
};

// The two largest values, and whether any is NaN.
struct Largest {
  float first, second;
  int nan;
  __device__ Largest shuffled(int offset) const {
    return {__shfl_xor_sync(kAll, first, offset), __shfl_xor_sync(kAll, second, offset),
            __shfl_xor_sync(kAll, nan, offset)};
  }
};
__device__ inline Largest combine_largest(const Largest& a, const Largest& b) {
  return {fmaxf(a.first, b.first), fmaxf(fminf(a.first, b.first), fmaxf(a.second, b.second)), a.nan | b.nan};
}

struct Sums {
  float others;    // of exp(f - largest), but for the target's
  float weighted;  // of e·log e, likewise
  float tempered;  // of exp((f - largest)/T), all
  __device__ Sums shuffled(int offset) const {
    return {__shfl_xor_sync(kAll, others, offset), __shfl_xor_sync(kAll, weighted, offset),
            __shfl_xor_sync(kAll, tempered, offset)};
  }
};
__device__ inline Sums combine_sums(const Sums& a, const Sums& b) {
  return {a.others + b.others, a.weighted + b.weighted, a.tempered + b.tempered};
}

// A class in the order of the top-k: larger logits first, the lowest index first among equals.
template <typename Index>
struct Place {
  float value;
  Index index;
  __device__ Place shuffled(int offset) const {
    return {__shfl_xor_sync(kAll, value, offset), __shfl_xor_sync(kAll, index, offset)};
  }
};
template <typename Index>
__device__ inline bool precedes(const Place<Index>& a, const Place<Index>& b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}
template <typename Index>
__device__ inline Place<Index> combine_places(const Place<Index>& a, const Place<Index>& b) {
  return precedes(a, b) ? a : b;
}

// The kListed first places among those that were added, in registers: every index into them is known to the compiler.
struct Leaders {
  Place<int> places[kListed];
  __device__ Leaders() {
#pragma unroll
    for (int i = 0; i < kListed; ++i) places[i] = {-INFINITY, INT_MAX};
  }
  __device__ void add(Place<int> place) {
    if (!precedes(place, places[kListed - 1])) return;
#pragma unroll
    for (int i = 0; i < kListed; ++i) {  // each place that it precedes moves one down
      const Place<int> here = places[i];
      const bool before = precedes(place, here);
      places[i] = before ? place : here;
      place = before ? here : place;
    }
  }
  __device__ void drop_first() {
#pragma unroll
    for (int i = 0; i + 1 < kListed; ++i) places[i] = places[i + 1];
    places[kListed - 1] = {-INFINITY, INT_MAX};
  }
};

// Calls visit(j, f[j … j + kVec - 1]) for this thread's classes of image b, f being the mean over the members.
template <bool kAlone, typename T, int kVec, typename Visit>
__device__ void for_each_pack(const LogitEnergyCall& call, int64_t b, Visit visit) {
  const T* row = static_cast<const T*>(call.logits) + b * call.classes;
  const int64_t member = call.batch * call.classes;
  const float members = static_cast<float>(call.members);
  using G = Group<kAlone>;
  for (int64_t j = int64_t{G::rank()} * kVec; j < call.classes; j += int64_t{G::size()} * kVec) {
    float f[kVec] = {};
    for (int64_t m = 0; m < call.members; ++m) {
      const auto pack = *reinterpret_cast<const Pack<T, kVec>*>(row + m * member + j);
#pragma unroll
      for (int i = 0; i < kVec; ++i) f[i] += to_float(pack.values[i]);
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) f[i] = call.members > 1 ? f[i] / members : f[i];
    visit(j, f);
  }
}

// Calls visit(j, f[j]).
template <bool kAlone, typename T, int kVec, typename Visit>
__device__ void for_each_class(const LogitEnergyCall& call, int64_t b, Visit visit) {
  for_each_pack<kAlone, T, kVec>(call, b, [&](int64_t j, const float (&f)[kVec]) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) visit(j + i, f[i]);
  });
}

// Writes value(j, f[j]) to the cotangents of all members of image b.
template <bool kAlone, typename T, int kVec, typename Value>
__device__ void write_cotangent(const LogitEnergyCall& call, int64_t b, Value value) {
  T* row = static_cast<T*>(call.cotangent) + b * call.classes;
  const int64_t member = call.batch * call.classes;
  for_each_pack<kAlone, T, kVec>(call, b, [&](int64_t j, const float (&f)[kVec]) {
    Pack<T, kVec> pack;
#pragma unroll
    for (int i = 0; i < kVec; ++i) from_float(value(j + i, f[i]), pack.values[i]);
    for (int64_t m = 0; m < call.members; ++m) *reinterpret_cast<Pack<T, kVec>*>(row + m * member + j) = pack;
  });
}

// A row without softmax, or whose target is no class. Not read again: its logits may be anything.
template <bool kAlone, typename T>
__device__ void write_nan(const LogitEnergyCall& call, int64_t b) {
  using G = Group<kAlone>;
  const float nan = nanf("");
  if (G::rank() == 0) {
    for (int i = 0; i < kStats; ++i) call.stats[i * call.batch + b] = nan;
    call.remaining[b] = nan;
  }
  for (int64_t i = G::rank(); i < call.topk; i += G::size()) {
    call.indices[b * call.topk + i] = i;
    call.probabilities[b * call.topk + i] = nan;
  }
  for (int64_t m = 0; m < call.members; ++m)
    for (int64_t j = G::rank(); j < call.classes; j += G::size())
      from_float(nan, static_cast<T*>(call.cotangent)[(m * call.batch + b) * call.classes + j]);
}

// Writes the k first places from what each thread has kept; returns the last.
template <bool kAlone>
__device__ Place<int64_t> write_leaders(const LogitEnergyCall& call, int64_t b, Leaders leaders, float largest,
                                        float exps, Place<int>* shared) {
  using G = Group<kAlone>;
  Place<int64_t> last{INFINITY, -1};
  for (int64_t i = 0; i < call.topk; ++i) {
    const Place<int> next = G::reduce(leaders.places[0], {-INFINITY, INT_MAX}, combine_places<int>, shared);
    if (leaders.places[0].index == next.index) leaders.drop_first();  // one thread has it
    last = {next.value, next.index};
    if (G::rank() == 0) {
      call.indices[b * call.topk + i] = last.index;
      call.probabilities[b * call.topk + i] = expf(last.value - largest) / exps;
    }
  }
  return last;
}

// The same by one pass over what follows the last, for any k and K.
template <bool kAlone, typename T, int kVec>
__device__ Place<int64_t> write_topk(const LogitEnergyCall& call, int64_t b, float largest, float exps,
                                     Place<int64_t>* shared) {
  using G = Group<kAlone>;
  Place<int64_t> last{INFINITY, -1};
  const Place<int64_t> none{-INFINITY, LLONG_MAX};
  for (int64_t i = 0; i < call.topk; ++i) {
    Place<int64_t> next = none;
    for_each_class<kAlone, T, kVec>(call, b, [&](int64_t j, float f) {
      const Place<int64_t> place{f, j};
      if (precedes(last, place)) next = combine_places(next, place);
    });
    last = G::reduce(next, none, combine_places<int64_t>, shared);
    if (G::rank() == 0) {
      call.indices[b * call.topk + i] = last.index;
      call.probabilities[b * call.topk + i] = expf(last.value - largest) / exps;
    }
  }
  return last;
}

// kKept: the places are kept in the first pass.
template <bool kAlone, bool kKept, typename T, int kVec>
__global__ void __launch_bounds__(kAlone ? kAloneThreads : kMaxThreads, 1)
    logit_energy_kernel(const LogitEnergyCall call) {
  using G = Group<kAlone>;
  __shared__ Largest shared_largest[kWarp];
  __shared__ Sums shared_sums[kWarp];
  __shared__ Place<int> shared_leaders[kWarp];
  __shared__ Place<int64_t> shared_places[kWarp];
  const int64_t b = G::row();
  if (b >= call.batch) return;
  const int64_t y = call.targets[b];
  const float t = call.temperature;

  Largest largest{-INFINITY, -INFINITY, 0};
  Leaders leaders;
  for_each_class<kAlone, T, kVec>(call, b, [&](int64_t j, float f) {
    largest = combine_largest(largest, {f, -INFINITY, f != f});
    if constexpr (kKept) leaders.add({f, static_cast<int>(j)});
  });
  largest = G::reduce(largest, {-INFINITY, -INFINITY, 0}, combine_largest, shared_largest);
  if (largest.nan || !isfinite(largest.first) || y < 0 || y >= call.classes) return write_nan<kAlone, T>(call, b);

  Sums sums{0, 0, 0};
  for_each_class<kAlone, T, kVec>(call, b, [&](int64_t j, float f) {
    const float d = f - largest.first, e = expf(d);
    if (t != 1) sums.tempered += expf(d / t);
    if (j == y) return;
    sums.others += e;
    sums.weighted += e * fmaxf(d, -FLT_MAX);  // 0·log 0 = 0
  });
  sums = G::reduce(sums, {0, 0, 0}, combine_sums, shared_sums);

  float target = 0;
  for (int64_t m = 0; m < call.members; ++m)
    target += to_float(static_cast<const T*>(call.logits)[(m * call.batch + b) * call.classes + y]);
  if (call.members > 1) target /= static_cast<float>(call.members);
  const float d = target - largest.first, e_target = expf(d);
  const float exps = sums.others + e_target;
  const float weighted = sums.weighted + (e_target > 0 ? e_target * d : 0.f);
  const float log_exps = d == 0 ? log1pf(sums.others) : logf(exps);
  const float tempered = t == 1 ? exps : sums.tempered;

  if (G::rank() == 0) {
    const float free = -(largest.first + t * (t == 1 ? log_exps : logf(tempered)));
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
    stat(kMargin, -expm1f(largest.second - largest.first) / exps);
  }

  Place<int64_t> last;
  if constexpr (kKept) {
    last = write_leaders<kAlone>(call, b, leaders, largest.first, exps, shared_leaders);
  } else {
    last = write_topk<kAlone, T, kVec>(call, b, largest.first, exps, shared_places);
  }

  // The last pass: cotangents, and the mass behind the last place (1 - sum would cancel).
  Sums rest{0, 0, 0};
  const float members = static_cast<float>(call.members);
  const float p_scale = (t == 1 ? call.class_weight - call.free_weight : call.class_weight) / exps / members;
  const float q_scale = call.free_weight / tempered / members;
  write_cotangent<kAlone, T, kVec>(call, b, [&](int64_t j, float f) {
    const float shifted = f - largest.first, e = expf(shifted);
    if (precedes(last, Place<int64_t>{f, j})) rest.others += e;
    const float q = t == 1 ? e : expf(shifted / t);
    if (j == y)  // p_y - 1 is minus the probability of the others, which does not cancel where the target is certain
      return -(call.class_weight * (sums.others / exps) + call.free_weight * (q / tempered)) / members;
    return t == 1 ? p_scale * e : p_scale * e - q_scale * q;
  });
  rest = G::reduce(rest, {0, 0, 0}, combine_sums, shared_sums);
  if (G::rank() == 0) call.remaining[b] = rest.others / exps;
}

}  // namespace
}  // namespace prism_fast
