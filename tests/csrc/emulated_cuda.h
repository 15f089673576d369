// Runs CUDA device code on the CPU: the threads of a block are coroutines of one thread, which a barrier or a shuffle
// makes wait for each other. It shows what a kernel computes, not how fast, and none of the races of a real device.
// Included before the kernel; a kernel is then called by emulate(blocks, threads, [&] { kernel(…); }).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#undef __shared__
#define __shared__ static  // blocks run one after the other
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__ static

using std::isfinite;  // device code has it in the global namespace

namespace emulated {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;

struct Barrier {
  unsigned arrived = 0, rounds = 0;
};

struct Thread {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{new char[kStack]};
  unsigned rank = 0;
  bool done = false;
};

struct Block {
  std::vector<Thread> threads;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<unsigned long long> lanes;  // what each thread gives to a shuffle
  std::function<void()> body;
  ucontext_t scheduler{};
  Thread* running = nullptr;
};

inline Block* block = nullptr;

inline void yield() { swapcontext(&block->running->context, &block->scheduler); }

// Threads that have returned are not waited for: a device waits for those that run.
inline void wait(Barrier& barrier, unsigned first, unsigned count) {
  const unsigned round = barrier.rounds;
  ++barrier.arrived;
  while (barrier.rounds == round) {
    unsigned alive = 0;
    for (unsigned i = first; i < first + count; ++i) alive += !block->threads[i].done;
    if (barrier.arrived >= alive) {
      barrier.arrived = 0;
      ++barrier.rounds;
      break;
    }
    yield();
  }
}

struct Index {
  unsigned x;
};

}  // namespace emulated

inline emulated::Index threadIdx, blockIdx, blockDim;

inline void __syncthreads() { emulated::wait(emulated::block->all, 0, blockDim.x); }

template <typename V>
V __shfl_xor_sync(unsigned mask, V value, int offset) {
  static_assert(sizeof(V) <= sizeof(unsigned long long));
  using namespace emulated;
  if (mask != 0xffffffffu) std::abort();  // all that the kernels ask for
  const unsigned rank = block->running->rank, warp = rank / kWarp;
  std::memcpy(&block->lanes[rank], &value, sizeof(V));
  wait(block->warps[warp], warp * kWarp, kWarp);
  std::memcpy(&value, &block->lanes[rank ^ static_cast<unsigned>(offset)], sizeof(V));
  wait(block->warps[warp], warp * kWarp, kWarp);
  return value;
}

namespace emulated {

inline void run_thread() {
  block->body();
  block->running->done = true;
  yield();
}

// Calls `body` as each thread of each block; `threads` is a multiple of 32.
inline void emulate(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  blockDim.x = threads;
  Block made;
  made.threads = std::vector<Thread>(threads);
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    made.all = {};
    made.warps.assign(threads / kWarp, {});
    made.lanes.assign(threads, 0);
    made.body = body;
    block = &made;
    for (unsigned i = 0; i < threads; ++i) {
      Thread& thread = made.threads[i];
      thread.rank = i;
      thread.done = false;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, run_thread, 0);
    }
    for (bool some = true; some;) {
      some = false;
      for (Thread& thread : made.threads) {
        if (thread.done) continue;
        some = true;
        made.running = &thread;
        threadIdx.x = thread.rank;
        swapcontext(&made.scheduler, &thread.context);
      }
    }
  }
}

}  // namespace emulated
