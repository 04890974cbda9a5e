#include <string>

#include "base/cuda.hpp"
#include "base/gpu.hpp"
#include "cuda.hpp"

// Needs no driver until a function is called, and dpcomm._core before that: it brings the errors.
PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The CUDA kernels of dpcomm.";
  dpcomm::bind_cuda(module);
  module.def(
      "uuid",
      [](int index) {
        cudaDeviceProp properties;
        DPCOMM_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
        std::string text;
        for (const char byte : properties.uuid.bytes) {
          constexpr const char* kDigits = "0123456789abcdef";
          text += kDigits[byte >> 4 & 15];
          text += kDigits[byte & 15];
        }
        return text;
      },
      pybind11::arg("index"), "What tells the GPU from every other.");
  module.def("gpu", &dpcomm::gpu, pybind11::arg("index"), "The GPU as a dpcomm._core.Device.");
}
