#pragma once

#include <sched.h>

#include <span>

namespace dpcomm {

cpu_set_t own_cores();  // that this process may run on

// Whether ranks must share cores, by those that each may run on: somewhere more of them are
// confined than there are cores. A launcher that binds each rank to a core of its own crowds none.
bool crowded(std::span<const cpu_set_t> ranks);

}  // namespace dpcomm
