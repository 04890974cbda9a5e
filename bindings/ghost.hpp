#pragma once

#include <pybind11/pybind11.h>

namespace dpcomm {

void bind_ghost(pybind11::module_& module);

}  // namespace dpcomm
