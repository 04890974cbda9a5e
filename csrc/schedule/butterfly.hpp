#pragma once

#include "schedule/schedule.hpp"

namespace dpcomm {

// Recursive halving, then recursive doubling (Rabenseifner, "Optimization of collective reduction
// operations", ICCS 2004): the ring's bytes in 2 log2 p rounds. In round k the partner is p/2^(k+1)
// away, each of the two keeps the half of its blocks that holds its own, and sends the other; the
// second half of the rounds takes the same way back. Other rank counts are folded.
Schedule butterfly(int rank, int size);

}  // namespace dpcomm
