#pragma once

#include <functional>

namespace dpcomm {

// Runs work(0) … work(parts - 1) at the same time on the workers of the OpenMP runtime that is
// loaded in this process, torch's where there are several, and returns when all have ended; false,
// and nothing is run, where there is none, where it has not so many workers to give, or after a
// fork, which its workers do not outlive.
//
// Those workers spin for a while after each of torch's kernels. Threads of ours beside them would
// take turns with them on the same cores, a time slice of the system each, and a kernel of 0.1 ms
// take 2.
bool run_on_openmp(int parts, const std::function<void(int)>& work);

}  // namespace dpcomm
