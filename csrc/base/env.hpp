#pragma once

#include <string>

namespace dpcomm {

// Every environment variable that the core reads, read once, at the first use.
struct Env {
  // DPCOMM_DEBUG: WARN (default), INFO or TRACE. What the core logs, on stderr.
  const std::string debug;
  // DPCOMM_TIMEOUT: seconds that a rank waits for its peers in one collective. Default 60.
  const double timeout;
};

const Env& env();

}  // namespace dpcomm
