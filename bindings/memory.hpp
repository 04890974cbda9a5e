#pragma once

#include <cstdint>

namespace dpcomm {

// Python passes addresses as integers (dpcomm/arrays.py).
template <class T>
T* pointer_to(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace dpcomm
