#pragma once

#include <pybind11/pybind11.h>

namespace dpcomm {

// The private step: the one place where the engine's collectives and the noise meet.
void bind_step(pybind11::module_& module);

}  // namespace dpcomm
