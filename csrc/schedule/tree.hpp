#pragma once

#include "schedule/schedule.hpp"

// The binomial tree: ceil(log2 p) rounds each way, the whole buffer in every message. Least
// latency for short messages that need a root.

namespace dpcomm {

// In round k each rank whose distance from the root is an odd multiple of 2^k sends what it has to
// the rank 2^k nearer, and is done.
Schedule tree_reduce(int rank, int size, int root);

// The same tree from the root outwards.
Schedule tree_broadcast(int rank, int size, int root);

// Reduce to rank 0, then broadcast from it.
Schedule tree(int rank, int size);

}  // namespace dpcomm
