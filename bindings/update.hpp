#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "base/error.hpp"
#include "memory.hpp"
#include "privacy/update.hpp"

namespace dpcomm {

// Addresses as Python gives them; UsageError where the optimizer keeps another number of states.
inline UpdateShard shard_of(std::uintptr_t gradient, std::uintptr_t parameters,
                            const std::vector<std::uintptr_t>& states, const Optimizer& optimizer) {
  DPCOMM_CHECK(states.size() == static_cast<std::size_t>(states_of(optimizer)), UsageError,
               states.size(), " state buffers for an optimizer that keeps ", states_of(optimizer),
               ": give one for SGD with momentum, none without, two for Adam");
  UpdateShard shard{pointer_to<const float>(gradient), pointer_to<float>(parameters), {}};
  for (std::size_t k = 0; k < states.size(); ++k) shard.states[k] = pointer_to<float>(states[k]);
  return shard;
}

void bind_update(pybind11::module_& module);

}  // namespace dpcomm
