#pragma once

#include <cuda_runtime.h>  // CUDA's, or that of simt/, which runs the same kernels on the CPU

#include <cstddef>

#include "base/error.hpp"
#include "base/stream.hpp"

namespace dpcomm {

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

#ifdef __CUDACC__
// The block's dynamic shared memory, whose size the launch gives. simt/ has its own.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}
#endif

// Throws EnvironmentError unless the call succeeded.
#define DPCOMM_CUDA_CHECK(call)                                             \
  do {                                                                      \
    const cudaError_t status_ = (call);                                     \
    DPCOMM_CHECK(status_ == cudaSuccess, ::dpcomm::EnvironmentError, #call, \
                 " failed: ", cudaGetErrorString(status_));                 \
  } while (0)

struct Grid {
  unsigned blocks;
  unsigned threads;
  std::size_t shared_bytes = 0;
  bool cooperative = false;  // all blocks run at the same time and may wait for each other
};

// Starts a kernel on the current device; the one place that does. Returns at once.
template <class... Parameters, class... Arguments>
void launch(const Grid& grid, Stream stream, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = {grid.blocks, 1, 1};
  config.blockDim = {grid.threads, 1, 1};
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = grid.cooperative ? 1 : 0;
  DPCOMM_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  DPCOMM_CUDA_CHECK(cudaGetDevice(&device));
  DPCOMM_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Makes a device current for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    DPCOMM_CUDA_CHECK(cudaGetDevice(&before_));
    if (device != before_) DPCOMM_CUDA_CHECK(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace dpcomm
