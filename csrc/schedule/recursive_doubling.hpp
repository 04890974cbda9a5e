#pragma once

#include "schedule/schedule.hpp"

namespace dpcomm {

// In round k each rank exchanges all it has with the rank 2^k away, and both add: log2 p rounds of
// the whole buffer, the fewest of all, for short messages. Every rank completes every block. Other
// rank counts are folded.
Schedule recursive_doubling(int rank, int size);

}  // namespace dpcomm
