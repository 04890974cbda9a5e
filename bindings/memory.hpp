#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace dpcomm {

// Python passes addresses as integers (dpcomm/arrays.py).
template <class T>
T* pointer_to(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_memory(pybind11::module_& module);

}  // namespace dpcomm
