#pragma once

#include "schedule/schedule.hpp"

// Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
// J. Parallel Distrib. Comput. 69 (2009): 2(p-1) rounds, 2n(p-1)/p bytes out on every rank, the
// least possible.

namespace dpcomm {

// Block b sets out from rank b+1 and gains one addend a hop, until it reaches its owner b.
Schedule ring_reduce_scatter(int rank, int size);

// Block b sets out from its owner b and is copied from neighbour to neighbour.
Schedule ring_all_gather(int rank, int size);

Schedule ring(int rank, int size);

}  // namespace dpcomm
