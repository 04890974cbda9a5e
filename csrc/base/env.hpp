#pragma once

#include <string>
#include <vector>

namespace dpcomm {

// Every environment variable that the core reads, read once, at the first use.
struct Env {
  // DPCOMM_DEBUG: WARN (default), INFO or TRACE. What the core logs, on stderr.
  const std::string debug;
  // DPCOMM_TIMEOUT: seconds that a rank waits for its peers in one collective. Default 60.
  const double timeout;
  // DPCOMM_HOSTS: a number for each rank, as 0,0,1,1: the host that it is to believe it is on, so
  // that several hosts can be tested on one. Default: what MPI says.
  const std::vector<int> hosts;
  // DPCOMM_NCCL: the NCCL to open, as /usr/lib/libnccl.so.2. Default: the one that torch brought.
  const std::string nccl;
};

const Env& env();

}  // namespace dpcomm
