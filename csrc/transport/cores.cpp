#include "transport/cores.hpp"

#include <algorithm>

namespace dpcomm {

cpu_set_t own_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  // More cores than a cpu_set_t holds: call it one, and share it with the others.
  if (::sched_getaffinity(0, sizeof(cores), &cores) != 0) CPU_SET(0, &cores);
  return cores;
}

bool crowded(std::span<const cpu_set_t> ranks) {
  return std::any_of(ranks.begin(), ranks.end(), [&](const cpu_set_t& cores) {
    const auto confined = std::count_if(ranks.begin(), ranks.end(), [&](const cpu_set_t& other) {
      cpu_set_t both;
      CPU_AND(&both, &cores, &other);
      return CPU_EQUAL(&both, &other);
    });
    return confined > CPU_COUNT(&cores);
  });
}

}  // namespace dpcomm
