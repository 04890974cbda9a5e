#pragma once

#include "schedule/schedule.hpp"

namespace dpcomm {

// Two binary trees, each over half of the buffer (Sanders, Speck and Träff, "Two-tree algorithms
// for full bandwidth broadcast, reduction and scan", Parallel Computing 35 (2009)). Who has
// children in one is a leaf of the other, so that pipelined a rank sends and receives about 2n
// bytes in all, as in the ring, and waits for floor(log2 p) levels each way instead of for p-1
// neighbours.
Schedule double_tree(int rank, int size);

}  // namespace dpcomm
