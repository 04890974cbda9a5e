#include "base/env.hpp"

#include <cstdlib>
#include <sstream>

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

std::vector<int> numbers(const char* name) {
  std::vector<int> found;
  std::istringstream rest(text(name, ""));
  for (std::string part; std::getline(rest, part, ',');) {
    const bool digits = !part.empty() && part.size() < 9 &&
                        part.find_first_not_of("0123456789") == std::string::npos;
    DPCOMM_CHECK(digits, UsageError, name, "='", text(name, ""),
                 "' is no list of numbers: unset it or write ", name, "=0,0,1,1");
    found.push_back(std::stoi(part));
  }
  return found;
}

}  // namespace

const Env& env() {
  static const Env instance{.debug = text("DPCOMM_DEBUG", "WARN"),
                            .timeout = positive("DPCOMM_TIMEOUT", "60"),
                            .hosts = numbers("DPCOMM_HOSTS"),
                            .nccl = text("DPCOMM_NCCL", "")};
  return instance;
}

}  // namespace dpcomm
