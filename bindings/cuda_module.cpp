#include "cuda.hpp"

// Needs no driver until a function is called, and dpcomm._core before that: it brings the errors.
PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The CUDA kernels of dpcomm.";
  dpcomm::bind_cuda(module);
}
