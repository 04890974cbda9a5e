#pragma once

#include <cmath>
#include <cstddef>

#include "base/host_device.hpp"

namespace dpcomm {

// The largest float that keeps the bound of clip.hpp, for a row of `count` numbers whose norm is
// right to the relative `error` and whose products round by at most `rounding`, together; see
// clip_rule.hpp for `stability`.
DPCOMM_HD float clip_factor(double norm, double error, std::size_t count, double clip_norm,
                            double stability, double rounding = 1 + 0x1p-24) {
  const auto n = static_cast<double>(count);
  const double longest = (norm + stability) * (1 + error);
  if (stability == 0 && longest <= clip_norm) return 1;
  const double left = clip_norm - 0x1p-150 * ::sqrt(n);
  const double quotient = left / (longest * rounding) * (1 - 0x1p-50);
  if (!(quotient > 0)) return 0;
  const auto nearest = static_cast<float>(quotient);
  return nearest <= quotient ? nearest : ::nextafterf(nearest, 0);
}

// The error of a norm whose `count` squares were summed in double.
DPCOMM_HD double exact_error(std::size_t count) {
  return (static_cast<double>(count) + 8) * 0x1p-53;
}

DPCOMM_HD float clip_factor(double norm, std::size_t count, double clip_norm, double stability) {
  return clip_factor(norm, exact_error(count), count, clip_norm, stability);
}

}  // namespace dpcomm
