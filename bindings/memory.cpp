#include "memory.hpp"

#include <pybind11/numpy.h>

namespace py = pybind11;

namespace dpcomm {

void bind_memory(py::module_& module) {
  module.def(
      "array_pointer",
      [](const py::array& array) { return reinterpret_cast<std::uintptr_t>(array.data()); },
      py::arg("array").noconvert(),
      "Where a NumPy array's first element lies: array.ctypes.data, at a tenth of its time.");
}

}  // namespace dpcomm
