#pragma once

#include <span>
#include <string>

#include "schedule/schedule.hpp"

namespace dpcomm {

enum class Goal { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kReduce };

// Proves a schedule by running it on symbols: a block is the set of ranks that contributed to it
// and a mark that the epilogue was called. Returns what is wrong, or an empty string if, for the
// schedules of all ranks 0 to size-1 (64 at most):
//
//  - every send has its receive, of the same blocks, in the same round, and the other way round;
//  - no message of a round lands where another one of it is read or lands, but to be added to the
//    same blocks;
//  - nothing is added twice, and nothing is added to a completed block, and no part copied over it;
//  - the epilogue is called on every block that holds all contributions, before it is sent on, so
//    that noise is in every copy exactly once;
//  - every rank ends with what the goal promises it.
//
// `root` matters for broadcast and reduce only.
std::string check(std::span<const Schedule> ranks, Goal goal, int root = 0);

}  // namespace dpcomm
