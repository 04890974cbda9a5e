#include "base/log.hpp"

#include <unistd.h>

#include <atomic>
#include <string>

#include "base/env.hpp"
#include "base/error.hpp"

namespace dpcomm {
namespace {

std::atomic<int> log_rank{-1};
std::atomic<int> log_size{0};

LogLevel threshold() {
  const std::string& level = env().debug;
  if (level == "WARN") return LogLevel::kWarn;
  if (level == "INFO") return LogLevel::kInfo;
  if (level == "TRACE") return LogLevel::kTrace;
  throw UsageError(concat("DPCOMM_DEBUG='", level, "' is unknown: use WARN, INFO or TRACE"));
}

}  // namespace

void set_log_rank(int rank, int size) {
  log_rank = rank;
  log_size = size;
}

bool logs(LogLevel level) {
  static const LogLevel limit = threshold();
  return level <= limit;
}

void log(LogLevel level, std::string_view message) {
  if (!logs(level)) return;
  const std::string who = log_rank < 0 ? "" : concat("rank ", log_rank, "/", log_size, ": ");
  const std::string line = concat("dpcomm: ", who, message, "\n");
  // One write a line, so that lines of several ranks do not mix.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace dpcomm
