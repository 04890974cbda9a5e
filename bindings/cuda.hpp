#pragma once

#include <pybind11/pybind11.h>

namespace dpcomm {

// The kernels' launchers: of _cuda, and of the module of the tests that runs them on a CPU.
void bind_cuda(pybind11::module_& module);

}  // namespace dpcomm
