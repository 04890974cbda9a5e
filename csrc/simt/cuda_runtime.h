#pragma once

// The part of CUDA that dpcomm's kernels and launchers use, on the SIMT machine: the compiler finds
// this header in place of CUDA's, and a .cu is plain C++. Streams are in order because everything
// is synchronous; device memory is the host's.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>

#include "simt/machine.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ thread_local  // a block is a thread; inside a function that means static
#define __align__(bytes) alignas(bytes)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// CUDA's device code has these without a namespace.
using std::max;
using std::min;

// Barriers and warp collectives. The names are CUDA's, hence the underscores.

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  dpcomm::simt::block_barrier(where);
}

namespace dpcomm {

// What `extern __shared__` is in CUDA (base/cuda.hpp).
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

}  // namespace dpcomm

namespace dpcomm::simt {

inline void demand_full_warp(unsigned mask, std::source_location where) {
  if (mask != 0xffffffffu) fault(where, "the mask of a warp collective must be all lanes");
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, std::source_location where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  demand_full_warp(mask, where);
  std::uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  const auto& words = warp_exchange(word, where);
  std::memcpy(&value, &words[source % kWarpSize], sizeof value);
  return value;
}

}  // namespace dpcomm::simt

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  dpcomm::simt::demand_full_warp(mask, where);
  dpcomm::simt::warp_barrier(where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source,
              std::source_location where = std::source_location::current()) {
  return dpcomm::simt::shuffle(mask, value, static_cast<unsigned>(source), where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with,
                  std::source_location where = std::source_location::current()) {
  return dpcomm::simt::shuffle(mask, value, dpcomm::simt::lane() ^ static_cast<unsigned>(with),
                               where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  dpcomm::simt::demand_full_warp(mask, where);
  const auto& words = dpcomm::simt::warp_exchange(predicate != 0, where);
  unsigned ballot = 0;
  for (unsigned i = 0; i < words.size(); ++i) ballot |= static_cast<unsigned>(words[i]) << i;
  return ballot;
}

// Atomics of nvcc's with the orders of C++, which the thread sanitizer understands.

enum { __NV_ATOMIC_ACQUIRE, __NV_ATOMIC_RELEASE };
enum { __NV_THREAD_SCOPE_DEVICE };

template <class T>
T __nv_atomic_fetch_add(T* place, T value, int order, int) {
  if (order != __NV_ATOMIC_RELEASE) std::abort();
  return __atomic_fetch_add(place, value, __ATOMIC_RELEASE);
}

template <class T>
T __nv_atomic_load_n(T* place, int order, int,
                     std::source_location where = std::source_location::current()) {
  if (order != __NV_ATOMIC_ACQUIRE) std::abort();
  dpcomm::simt::yield(where);
  return __atomic_load_n(place, __ATOMIC_ACQUIRE);
}

template <class T>
T atomicAdd(T* place, T value) {
  return std::atomic_ref<T>(*place).fetch_add(value, std::memory_order_relaxed);
}

// The runtime.

using cudaStream_t = struct CUstream_st*;

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  dpcomm::simt::run({.blocks = config->gridDim.x,
                     .threads = config->blockDim.x,
                     .shared_bytes = config->dynamicSmemBytes,
                     .cooperative = config->numAttrs > 0 && config->attrs[0].val.cooperative != 0},
                    [&] { std::apply(kernel, copies); });
  return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  *data = std::malloc(bytes);
  return *data != nullptr || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

// The device that launchers see: by default a small one, so that small inputs fill it.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& device = dpcomm::simt::device();
  *value =
      attribute == cudaDevAttrMultiProcessorCount ? device.multiprocessors : device.shared_bytes;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
