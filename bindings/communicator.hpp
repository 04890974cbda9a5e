#pragma once

#include <pybind11/pybind11.h>

namespace dpcomm {

// Communicator and the transports that need no library: `local` and `shm`.
void bind_communicator(pybind11::module_& module);

}  // namespace dpcomm
