#pragma once

#include <pybind11/pybind11.h>

namespace dpcomm {

// A whole training step of a chain of linear layers: sample, gather, forward, backward, clip,
// reduce, noise, update.
void bind_native_step(pybind11::module_& module);

}  // namespace dpcomm
