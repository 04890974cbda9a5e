#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "privacy/clip_rule.hpp"

namespace dpcomm {

// A rule with its norms, as Python holds it.
struct HeldClipRule {
  std::vector<double> norms;
  double stability;

  ClipRule rule() const { return {norms, stability}; }
};

void bind_clip_rule(pybind11::module_& module);

}  // namespace dpcomm
