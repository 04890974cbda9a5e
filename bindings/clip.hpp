#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "memory.hpp"
#include "privacy/clip.hpp"

namespace dpcomm {

// Address, columns and row stride in elements of each tensor.
using PyBlocks = std::vector<std::tuple<std::uintptr_t, std::size_t, std::size_t>>;

inline std::vector<GradBlock> grads_of(const PyBlocks& blocks) {
  std::vector<GradBlock> grads;
  for (const auto& [address, columns, stride] : blocks) {
    grads.push_back({pointer_to<const void>(address), columns, stride});
  }
  return grads;
}

void bind_clip(pybind11::module_& module);

}  // namespace dpcomm
