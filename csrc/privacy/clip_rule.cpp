#include "privacy/clip_rule.hpp"

#include <cmath>

#include "base/error.hpp"

namespace dpcomm {

void check(const ClipRule& rule, std::size_t layers) {
  DPCOMM_CHECK(rule.norms.size() == 1 || rule.norms.size() == layers, UsageError, rule.norms.size(),
               " clip norms for ", layers, " layers: give one, or one for each");
  for (const double norm : rule.norms) {
    DPCOMM_CHECK(norm > 0 && std::isfinite(norm), UsageError, "clip norm ", norm,
                 ": give a positive number");
  }
  DPCOMM_CHECK(rule.stability >= 0 && std::isfinite(rule.stability), UsageError, "stability ",
               rule.stability, ": give 0, which clips only what is longer, or a positive number");
}

}  // namespace dpcomm
