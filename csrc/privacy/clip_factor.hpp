#pragma once

#include <cmath>
#include <cstddef>

#include "base/host_device.hpp"

namespace dpcomm {

// The largest float that keeps the bound of clip.hpp, for a row of `count` numbers.
DPCOMM_HD float clip_factor(double norm, std::size_t count, double clip_norm) {
  const auto n = static_cast<double>(count);
  const double longest = norm * (1 + (n + 8) * 0x1p-53);
  if (longest <= clip_norm) return 1;
  const double left = clip_norm - 0x1p-150 * ::sqrt(n);
  const double quotient = left / (longest * (1 + 0x1p-24)) * (1 - 0x1p-50);
  if (!(quotient > 0)) return 0;
  const auto nearest = static_cast<float>(quotient);
  return nearest <= quotient ? nearest : ::nextafterf(nearest, 0);
}

}  // namespace dpcomm
