// prism_fast::logit_energy on CUDA: one block per image. The row is read from memory once; the later passes over it
// find it in the L1 and L2 caches, so no K is too long for shared memory or registers.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <climits>

#include "checks.h"
#include "logit_energy.h"

namespace prism_fast {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;  // 1,024 leave 64 registers a thread, and the kernel spills
constexpr unsigned kAll = 0xffffffffu;

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

// Reduces over the block with warp shuffles; every thread gets the result. `shared` holds one value per warp.
template <typename V, typename Combine>
__device__ V reduce_block(V value, V identity, Combine combine, V* shared) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = combine(value, value.shuffled(offset));
  __syncthreads();  // the values of an earlier reduction have been read
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = threadIdx.x % kWarp < blockDim.x / kWarp ? shared[threadIdx.x % kWarp] : identity;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = combine(value, value.shuffled(offset));
  return value;
}

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
struct Place {
  float value;
  int64_t index;
  __device__ Place shuffled(int offset) const {
    return {__shfl_xor_sync(kAll, value, offset),
            static_cast<int64_t>(__shfl_xor_sync(kAll, static_cast<long long>(index), offset))};
  }
};
__device__ inline bool precedes(const Place& a, const Place& b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}
__device__ inline Place combine_places(const Place& a, const Place& b) { return precedes(a, b) ? a : b; }

// Calls visit(j, f[j … j + kVec - 1]) for this thread's classes of image b, f being the mean over the members.
template <typename T, int kVec, typename Visit>
__device__ void for_each_pack(const LogitEnergyCall& call, int64_t b, Visit visit) {
  const T* row = static_cast<const T*>(call.logits) + b * call.classes;
  const int64_t member = call.batch * call.classes;
  const float members = static_cast<float>(call.members);
  for (int64_t j = static_cast<int64_t>(threadIdx.x) * kVec; j < call.classes; j += int64_t{blockDim.x} * kVec) {
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
template <typename T, int kVec, typename Visit>
__device__ void for_each_class(const LogitEnergyCall& call, int64_t b, Visit visit) {
  for_each_pack<T, kVec>(call, b, [&](int64_t j, const float (&f)[kVec]) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) visit(j + i, f[i]);
  });
}

// Writes value(j, f[j]) to the cotangents of all members of image b.
template <typename T, int kVec, typename Value>
__device__ void write_cotangent(const LogitEnergyCall& call, int64_t b, Value value) {
  T* row = static_cast<T*>(call.cotangent) + b * call.classes;
  const int64_t member = call.batch * call.classes;
  for_each_pack<T, kVec>(call, b, [&](int64_t j, const float (&f)[kVec]) {
    Pack<T, kVec> pack;
#pragma unroll
    for (int i = 0; i < kVec; ++i) from_float(value(j + i, f[i]), pack.values[i]);
    for (int64_t m = 0; m < call.members; ++m) *reinterpret_cast<Pack<T, kVec>*>(row + m * member + j) = pack;
  });
}

// A row without softmax, or whose target is no class. Not read again: its logits may be anything.
template <typename T>
__device__ void write_nan(const LogitEnergyCall& call, int64_t b) {
  const float nan = nanf("");
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStats; ++i) call.stats[i * call.batch + b] = nan;
    call.remaining[b] = nan;
  }
  for (int64_t i = threadIdx.x; i < call.topk; i += blockDim.x) {
    call.indices[b * call.topk + i] = i;
    call.probabilities[b * call.topk + i] = nan;
  }
  for (int64_t m = 0; m < call.members; ++m)
    for (int64_t j = threadIdx.x; j < call.classes; j += blockDim.x)
      from_float(nan, static_cast<T*>(call.cotangent)[(m * call.batch + b) * call.classes + j]);
}

// Writes the k first places, each by one pass over what follows the last; returns the last.
template <typename T, int kVec>
__device__ Place write_topk(const LogitEnergyCall& call, int64_t b, float largest, float exps, Place* shared) {
  Place last{INFINITY, -1};
  const Place none{-INFINITY, LLONG_MAX};
  for (int64_t i = 0; i < call.topk; ++i) {
    Place next = none;
    for_each_class<T, kVec>(call, b, [&](int64_t j, float f) {
      const Place place{f, j};
      if (precedes(last, place)) next = combine_places(next, place);
    });
    last = reduce_block(next, none, combine_places, shared);
    if (threadIdx.x == 0) {
      call.indices[b * call.topk + i] = last.index;
      call.probabilities[b * call.topk + i] = expf(last.value - largest) / exps;
    }
  }
  return last;
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kMaxThreads, 1) logit_energy_kernel(const LogitEnergyCall call) {
  __shared__ Largest shared_largest[kWarp];
  __shared__ Sums shared_sums[kWarp];
  __shared__ Place shared_places[kWarp];
  const int64_t b = blockIdx.x, y = call.targets[b];
  const float t = call.temperature;

  Largest largest{-INFINITY, -INFINITY, 0};
  for_each_class<T, kVec>(call, b,
                          [&](int64_t, float f) { largest = combine_largest(largest, {f, -INFINITY, f != f}); });
  largest = reduce_block(largest, {-INFINITY, -INFINITY, 0}, combine_largest, shared_largest);
  if (largest.nan || !isfinite(largest.first) || y < 0 || y >= call.classes) return write_nan<T>(call, b);

  Sums sums{0, 0, 0};
  for_each_class<T, kVec>(call, b, [&](int64_t j, float f) {
    const float d = f - largest.first, e = expf(d);
    if (t != 1) sums.tempered += expf(d / t);
    if (j == y) return;
    sums.others += e;
    sums.weighted += e * fmaxf(d, -FLT_MAX);  // 0·log 0 = 0
  });
  sums = reduce_block(sums, {0, 0, 0}, combine_sums, shared_sums);

  float target = 0;
  for (int64_t m = 0; m < call.members; ++m)
    target += to_float(static_cast<const T*>(call.logits)[(m * call.batch + b) * call.classes + y]);
  if (call.members > 1) target /= static_cast<float>(call.members);
  const float d = target - largest.first, e_target = expf(d);
  const float exps = sums.others + e_target;
  const float weighted = sums.weighted + (e_target > 0 ? e_target * d : 0.f);
  const float log_exps = d == 0 ? log1pf(sums.others) : logf(exps);
  const float tempered = t == 1 ? exps : sums.tempered;

  if (threadIdx.x == 0) {
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

  const Place last = write_topk<T, kVec>(call, b, largest.first, exps, shared_places);

  // The last pass: cotangents, and the mass behind the last place (1 - sum would cancel).
  Sums rest{0, 0, 0};
  const float members = static_cast<float>(call.members);
  const float p_scale = (t == 1 ? call.class_weight - call.free_weight : call.class_weight) / exps / members;
  const float q_scale = call.free_weight / tempered / members;
  write_cotangent<T, kVec>(call, b, [&](int64_t j, float f) {
    const float shifted = f - largest.first, e = expf(shifted);
    if (precedes(last, {f, j})) rest.others += e;
    const float q = t == 1 ? e : expf(shifted / t);
    if (j == y)  // p_y - 1 is minus the probability of the others, which does not cancel where the target is certain
      return -(call.class_weight * (sums.others / exps) + call.free_weight * (q / tempered)) / members;
    return t == 1 ? p_scale * e : p_scale * e - q_scale * q;
  });
  rest = reduce_block(rest, {0, 0, 0}, combine_sums, shared_sums);
  if (threadIdx.x == 0) call.remaining[b] = rest.others / exps;
}

template <typename T>
void launch_rows(const LogitEnergyCall& call, cudaStream_t stream) {
  constexpr int kVec = 16 / sizeof(T);
  const auto address = reinterpret_cast<uintptr_t>(call.logits) | reinterpret_cast<uintptr_t>(call.cotangent);
  const bool aligned = address % 16 == 0 && call.classes % kVec == 0;
  const int64_t loads = aligned ? call.classes / kVec : call.classes;
  int threads = 64;
  while (threads < kMaxThreads && threads * 4 < loads) threads *= 2;  // about four loads a thread
  const auto blocks = static_cast<unsigned>(call.batch);
  if (aligned) {
    logit_energy_kernel<T, kVec><<<blocks, threads, 0, stream>>>(call);
  } else {
    logit_energy_kernel<T, 1><<<blocks, threads, 0, stream>>>(call);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_logit_energy(const LogitEnergyCall& call, at::ScalarType dtype, cudaStream_t stream) {
  if (call.batch == 0) return;
  TORCH_CHECK_VALUE(call.batch <= INT_MAX, "logits: expected at most ", INT_MAX, " images, got ", call.batch);
  if (dtype == at::kFloat) {
    launch_rows<float>(call, stream);
  } else if (dtype == at::kHalf) {
    launch_rows<__half>(call, stream);
  } else {
    launch_rows<__nv_bfloat16>(call, stream);
  }
}

LogitEnergyOutputs logit_energy_cuda(const at::Tensor& logits_in, const at::Tensor& targets_in, double temperature,
                                     double free_weight, double class_weight, int64_t topk) {
  const c10::cuda::CUDAGuard guard(logits_in.device());
  at::Tensor logits = logits_in, targets = targets_in;
  LogitEnergyOutputs outputs;
  const LogitEnergyCall call =
      prepare_logit_energy(logits, targets, temperature, free_weight, class_weight, topk, outputs);
  launch_logit_energy(call, logits.scalar_type(), c10::cuda::getCurrentCUDAStream());
  return outputs;
}

}  // namespace
}  // namespace prism_fast

TORCH_LIBRARY_IMPL(prism_fast, CUDA, m) { m.impl("logit_energy", prism_fast::logit_energy_cuda); }
