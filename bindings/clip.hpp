#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
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

// Automatic clipping where there is a stabilizer.
inline ClipRule rule_of(double clip_norm, std::optional<double> stabilizer) {
  return {clip_norm, stabilizer.has_value(), stabilizer.value_or(0)};
}

void bind_clip(pybind11::module_& module);

}  // namespace dpcomm
