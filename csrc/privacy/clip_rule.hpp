#pragma once

#include <cstddef>
#include <span>

namespace dpcomm {

// What bounds a sample's gradient: one norm for all of it, or one for each layer's part.
struct ClipRule {
  std::span<const double> norms;
  // Above 0 every gradient is scaled, to the length norm |g| / (|g| + stability): automatic
  // clipping (Bu et al., "Automatic Clipping: Differentially Private Deep Learning Made Easier and
  // Stronger", NeurIPS 2023), whose bound is the norm too.
  double stability = 0;
};

// UsageError for norms or a stability that cannot be, or as many norms as there are layers not.
void check(const ClipRule& rule, std::size_t layers);

}  // namespace dpcomm
