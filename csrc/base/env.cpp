#include "base/env.hpp"

#include <cstdlib>

#include "base/error.hpp"

namespace dpcomm {
namespace {

std::string text(const char* name, const char* fallback) {
  const char* value = std::getenv(name);
  return value ? value : fallback;
}

double positive(const char* name, const char* fallback) {
  const std::string value = text(name, fallback);
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  DPCOMM_CHECK(end != value.c_str() && *end == '\0' && number > 0, UsageError, name, "='", value,
               "' is not a positive number: unset it or give seconds, as in ", name, "=", fallback);
  return number;
}

}  // namespace

const Env& env() {
  static const Env instance{.debug = text("DPCOMM_DEBUG", "WARN"),
                            .timeout = positive("DPCOMM_TIMEOUT", "60")};
  return instance;
}

}  // namespace dpcomm
