#pragma once

#include <pybind11/pybind11.h>

namespace dpcomm {

// Registers the Python exceptions of `base/error.hpp`: each C++ kind has one Python class.
void bind_errors(pybind11::module_& module);

}  // namespace dpcomm
