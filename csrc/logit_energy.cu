// prism_fast::logit_energy on CUDA: which kernel for which sizes.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "logit_energy.h"
#include "logit_energy_kernel.cuh"

namespace prism_fast {
namespace {

// By count, not by measurement: 4,096 classes are 32 loads of 16 bytes a lane in fp32, and 1,024 rows two warps for
// each scheduler of a large GPU.
constexpr int64_t kAloneClasses = 4096;
constexpr int64_t kAloneRows = 1024;

template <bool kAlone, bool kKept, typename T>
void launch_kernel(const LogitEnergyCall& call, unsigned blocks, int threads, bool aligned, cudaStream_t stream) {
  if (aligned) {
    logit_energy_kernel<kAlone, kKept, T, 16 / sizeof(T)><<<blocks, threads, 0, stream>>>(call);
  } else {
    logit_energy_kernel<kAlone, kKept, T, 1><<<blocks, threads, 0, stream>>>(call);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void launch_rows(const LogitEnergyCall& call, cudaStream_t stream) {
  constexpr int kVec = 16 / sizeof(T);
  const auto address = reinterpret_cast<uintptr_t>(call.logits) | reinterpret_cast<uintptr_t>(call.cotangent);
  const bool aligned = address % 16 == 0 && call.classes % kVec == 0;
  const bool kept = call.topk <= kListed && call.classes <= INT_MAX;
  const int64_t loads = aligned ? call.classes / kVec : call.classes;
  // A warp waits for no other one. Where there are few rows, or long ones, more threads for each shorten the wait.
  if (call.classes <= kAloneClasses && call.batch >= kAloneRows) {
    const auto blocks = static_cast<unsigned>((call.batch + kAloneThreads / kWarp - 1) / (kAloneThreads / kWarp));
    return kept ? launch_kernel<true, true, T>(call, blocks, kAloneThreads, aligned, stream)
                : launch_kernel<true, false, T>(call, blocks, kAloneThreads, aligned, stream);
  }
  int threads = 64;
  while (threads < kMaxThreads && threads * 4 < loads) threads *= 2;  // about four loads a thread
  const auto blocks = static_cast<unsigned>(call.batch);
  kept ? launch_kernel<false, true, T>(call, blocks, threads, aligned, stream)
       : launch_kernel<false, false, T>(call, blocks, threads, aligned, stream);
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
