#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace dpcomm {

struct Meeting {
  std::string key;  // the same on all ranks of a job, unlike any other job's on this host
  int rank;
  int size;
  double timeout;                 // seconds until all ranks must have come
  std::function<void()> on_wait;  // called now and then; what it throws ends the wait
};

// A file descriptor of `bytes` of zeroed memory that all ranks of the meeting share. Rank 0 makes
// the memory (memfd_create) and hands it out over a socket in Linux's abstract namespace. Neither
// has a name in any file system, so nothing is left behind however a rank ends, nothing of an
// earlier job can be found, the size of /dev/shm does not matter, and both sides check that the
// other is the same user. Returns once every rank has the memory.
int share_memory(const Meeting& meeting, std::size_t bytes);

}  // namespace dpcomm
