#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

namespace dpcomm {

struct AlignedDelete {
  void operator()(float* data) const { ::operator delete[](data, std::align_val_t(64)); }
};

// Floats whose first lies on a cache line, and so on a vector of any width.
using AlignedFloats = std::unique_ptr<float[], AlignedDelete>;

inline AlignedFloats aligned_zeros(std::size_t count) {
  auto* data = static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t(64)));
  std::fill_n(data, count, 0.0f);
  return AlignedFloats(data);
}

}  // namespace dpcomm
