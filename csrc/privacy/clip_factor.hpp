#pragma once

#include <cmath>
#include <cstddef>

#include "base/error.hpp"
#include "base/host_device.hpp"

namespace dpcomm {

// What a row g is scaled by: min(1, clip_norm / |g|); or, with automatic clipping (Bu, Wang, Zha
// and Karypis 2022, https://arxiv.org/abs/2206.07136), clip_norm / (|g| + stabilizer), short rows
// too.
struct ClipRule {
  double clip_norm;
  bool automatic = false;
  double stabilizer = 0;
};

inline void check(const ClipRule& rule) {
  DPCOMM_CHECK(rule.clip_norm > 0 && std::isfinite(rule.clip_norm), UsageError, "clip norm ",
               rule.clip_norm, ": give a positive number");
  DPCOMM_CHECK(!rule.automatic || (rule.stabilizer > 0 && std::isfinite(rule.stabilizer)),
               UsageError, "stabilizer ", rule.stabilizer, ": give a positive number");
}

// The largest float that keeps the bound of clip.hpp, for a row of `count` numbers whose norm is
// right to the relative `error`.
DPCOMM_HD float clip_factor(double norm, double error, std::size_t count, const ClipRule& rule) {
  const auto n = static_cast<double>(count);
  double longest = norm * (1 + error);
  if (rule.automatic) {
    longest += rule.stabilizer;
  } else if (longest <= rule.clip_norm) {
    return 1;
  }
  const double left = rule.clip_norm - 0x1p-150 * ::sqrt(n);
  const double quotient = left / (longest * (1 + 0x1p-24)) * (1 - 0x1p-50);
  if (!(quotient > 0)) return 0;
  const auto nearest = static_cast<float>(quotient);
  return nearest <= quotient ? nearest : ::nextafterf(nearest, 0);
}

// The error of a norm whose `count` squares were summed in double.
DPCOMM_HD double exact_error(std::size_t count) {
  return (static_cast<double>(count) + 8) * 0x1p-53;
}

DPCOMM_HD float clip_factor(double norm, std::size_t count, const ClipRule& rule) {
  return clip_factor(norm, exact_error(count), count, rule);
}

}  // namespace dpcomm
