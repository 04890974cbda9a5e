// Kernels with one planted fault each, and the same kernels without it. `faults NAME planted` must
// be caught, by the machine itself or by a sanitizer; `faults NAME sound` must pass everywhere.

#include <cuda_pipeline_primitives.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "base/cuda.hpp"

namespace dpcomm {
namespace {

constexpr unsigned kThreads = 64;
constexpr unsigned kBlocks = 4;

__device__ float warp_sum(float value) {
  for (int with = 16; with > 0; with /= 2) value += __shfl_xor_sync(kAllLanes, value, with);
  return value;
}

// Each thread hands its index to its left neighbour through shared memory.
template <bool kPlanted>
__global__ void missing_barrier(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!kPlanted) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

// The second write may come before the last read of the first.
template <bool kPlanted>
__global__ void missing_second_barrier(float* out) {
  __shared__ float shared[kThreads];
  out[threadIdx.x] = 0;
  for (unsigned round = 0; round < 2; ++round) {
    if (!kPlanted) __syncthreads();
    shared[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    out[threadIdx.x] += shared[(threadIdx.x + 1) % kThreads];
  }
}

template <bool kPlanted>
__global__ void missing_warp_barrier(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!kPlanted) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1u];
}

template <bool kPlanted>
__global__ void missing_atomic(float* out) {
  if (kPlanted) {
    out[0] += 1;
  } else {
    atomicAdd(&out[0], 1.0f);
  }
}

// Every block adds what all blocks have written.
template <bool kPlanted>
__global__ void missing_grid_barrier(float* out, unsigned* arrived) {
  if (threadIdx.x == 0) {
    out[blockIdx.x] = 1;
    __nv_atomic_fetch_add(arrived, 1u, __NV_ATOMIC_RELEASE, __NV_THREAD_SCOPE_DEVICE);
    const auto seen = [&] {
      return __nv_atomic_load_n(arrived, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE);
    };
    while (!kPlanted && seen() < gridDim.x) {
    }
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += out[b];
    out[gridDim.x + blockIdx.x] = sum;
  }
}

template <bool kPlanted>
__global__ void read_past_the_end(const float* in, float* out, unsigned count) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i < count) out[i] = in[kPlanted ? i + 1 : i];
}

template <bool kPlanted>
__global__ void write_past_the_end(float* out, unsigned count) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (kPlanted || i < count) out[i] = 1;
}

__global__ void sum_in_dynamic_shared(float* out) {
  auto* shared = dynamic_shared<float>();
  shared[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    out[0] = 0;
    for (unsigned i = 0; i < kThreads; ++i) out[0] += shared[i];
  }
}

template <bool kPlanted>
__global__ void static_shared_too_small(float* out) {
  __shared__ float shared[kPlanted ? kThreads / 2 : kThreads];
  shared[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

template <bool kPlanted>
__global__ void return_before_a_barrier(float* out, unsigned count) {
  if (kPlanted && threadIdx.x >= count) return;
  __syncthreads();
  if (threadIdx.x < count) out[threadIdx.x] = 1;
}

template <bool kPlanted>
__global__ void divergent_barrier(float* out) {
  if (!kPlanted || threadIdx.x < kWarpSize) __syncthreads();
  out[threadIdx.x] = 1;
  __syncthreads();
}

template <bool kPlanted>
__global__ void barriers_in_two_branches(float* out) {
  if (kPlanted && threadIdx.x % 2 == 0) {
    out[threadIdx.x] = 1;
    __syncthreads();
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}

template <bool kPlanted>
__global__ void divergent_shuffle(float* out) {
  float value = 1;
  if (!kPlanted || threadIdx.x % kWarpSize < 16) value = warp_sum(value);
  out[threadIdx.x] = value;
}

template <bool kPlanted>
__global__ void partial_mask(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(kPlanted ? 0xffffu : kAllLanes, 1.0f, 1);
}

template <bool kPlanted>
__global__ void shared_never_written(float* out) {
  __shared__ float sum;
  if (!kPlanted && threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, 1.0f);
  __syncthreads();
  out[threadIdx.x] = sum;
}

template <bool kPlanted>
__global__ void missing_copy_wait(const float* in, float* out) {
  __shared__ float shared[kThreads];
  __pipeline_memcpy_async(&shared[threadIdx.x], &in[threadIdx.x], sizeof(float));
  __pipeline_commit();
  if (!kPlanted) __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

template <bool kPlanted>
__global__ void misaligned_vector(const float* in, float* out) {
  const auto* vectors = reinterpret_cast<const float4*>(in + (kPlanted ? 1 : 0));
  if (threadIdx.x < 2) out[threadIdx.x] = vectors[threadIdx.x].x;
}

template <bool kPlanted>
__global__ void forgotten_tail(float* out, unsigned count) {
  const unsigned rounded = kPlanted ? count / kThreads * kThreads : count;
  for (unsigned i = threadIdx.x; i < rounded; i += kThreads) out[i] = 1;
}

template <bool kPlanted>
__global__ void awaits_nobody(unsigned* arrived) {
  if (!kPlanted) __nv_atomic_fetch_add(arrived, 1u, __NV_ATOMIC_RELEASE, __NV_THREAD_SCOPE_DEVICE);
  while (__nv_atomic_load_n(arrived, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE) == 0) {
  }
}

using Expected = std::function<float(unsigned)>;

bool equal(const std::vector<float>& out, unsigned count, const Expected& expected) {
  for (unsigned i = 0; i < count; ++i) {
    if (out[i] != expected(i)) {
      std::printf("wrong result: out[%u] = %g, not %g\n", i, out[i], expected(i));
      return false;
    }
  }
  return true;
}

template <bool kPlanted>
bool run(const std::string& name) {
  const auto one = [](unsigned) { return 1.0f; };
  std::vector<float> out(kThreads, NAN);
  unsigned arrived = 0;
  const Grid block = {.blocks = 1, .threads = kThreads};
  const auto each = [&](auto kernel, const Expected& expected) {
    launch(block, nullptr, kernel, out.data());
    return equal(out, kThreads, expected);
  };
  if (name == "missing_barrier") {
    return each(missing_barrier<kPlanted>,
                [](unsigned i) { return static_cast<float>((i + 1) % kThreads); });
  }
  if (name == "missing_second_barrier") return each(missing_second_barrier<kPlanted>, one);
  if (name == "missing_warp_barrier") {
    return each(missing_warp_barrier<kPlanted>,
                [](unsigned i) { return static_cast<float>(i ^ 1u); });
  }
  if (name == "missing_atomic") {
    out[0] = 0;
    launch(block, nullptr, missing_atomic<kPlanted>, out.data());
    return equal(out, 1, [](unsigned) { return static_cast<float>(kThreads); });
  }
  if (name == "missing_grid_barrier") {
    launch({.blocks = kBlocks, .threads = kThreads, .cooperative = true}, nullptr,
           missing_grid_barrier<kPlanted>, out.data(), &arrived);
    return equal(out, 2 * kBlocks,
                 [](unsigned i) { return i < kBlocks ? 1 : static_cast<float>(kBlocks); });
  }
  if (name == "read_past_the_end" || name == "write_past_the_end") {
    constexpr unsigned kCount = kBlocks * kThreads - 7;
    const std::vector<float> in(kCount, 1.0f);
    out.assign(kCount, NAN);
    out.shrink_to_fit();
    const Grid grid = {.blocks = kBlocks, .threads = kThreads};
    if (name == "read_past_the_end") {
      launch(grid, nullptr, read_past_the_end<kPlanted>, in.data(), out.data(), kCount);
    } else {
      launch(grid, nullptr, write_past_the_end<kPlanted>, out.data(), kCount);
    }
    return equal(out, kCount, one);
  }
  if (name == "dynamic_shared_too_small") {
    const std::size_t bytes = (kPlanted ? kThreads - 1 : kThreads) * sizeof(float);
    launch({.blocks = 1, .threads = kThreads, .shared_bytes = bytes}, nullptr,
           sum_in_dynamic_shared, out.data());
    return equal(out, 1, [](unsigned) { return static_cast<float>(kThreads); });
  }
  if (name == "static_shared_too_small") return each(static_shared_too_small<kPlanted>, one);
  if (name == "return_before_a_barrier") {
    launch(block, nullptr, return_before_a_barrier<kPlanted>, out.data(), kThreads - 1);
    return equal(out, kThreads - 1, one);
  }
  if (name == "divergent_barrier") return each(divergent_barrier<kPlanted>, one);
  if (name == "barriers_in_two_branches") return each(barriers_in_two_branches<kPlanted>, one);
  if (name == "divergent_shuffle") {
    return each(divergent_shuffle<kPlanted>, [](unsigned) { return 32.0f; });
  }
  if (name == "partial_mask") return each(partial_mask<kPlanted>, one);
  if (name == "shared_never_written") {
    return each(shared_never_written<kPlanted>,
                [](unsigned) { return static_cast<float>(kThreads); });
  }
  if (name == "missing_copy_wait") {
    const std::vector<float> in(kThreads, 1.0f);
    launch(block, nullptr, missing_copy_wait<kPlanted>, in.data(), out.data());
    return equal(out, kThreads, one);
  }
  if (name == "misaligned_vector") {
    alignas(16) const float in[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    launch(block, nullptr, misaligned_vector<kPlanted>, &in[0], out.data());
    return equal(out, 2, one);
  }
  if (name == "forgotten_tail") {
    launch(block, nullptr, forgotten_tail<kPlanted>, out.data(), kThreads - 1);
    return equal(out, kThreads - 1, one);
  }
  if (name == "awaits_nobody") {
    simt::device().patience = 0.1;
    launch(block, nullptr, awaits_nobody<kPlanted>, &arrived);
    return true;
  }
  std::printf("no kernel is called %s\n", name.c_str());
  return false;
}

}  // namespace
}  // namespace dpcomm

int main(int argc, char** argv) {
  if (argc != 3) {
    std::printf("usage: faults NAME planted|sound\n");
    return 2;
  }
  try {
    const bool right = std::string(argv[2]) == "planted" ? dpcomm::run<true>(argv[1])
                                                         : dpcomm::run<false>(argv[1]);
    std::printf(right ? "passed\n" : "failed\n");
    return right ? 0 : 1;
  } catch (const dpcomm::simt::Fault& fault) {
    std::printf("fault: %s\n", fault.what());
    return 1;
  }
}
