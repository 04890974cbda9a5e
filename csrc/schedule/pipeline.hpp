#pragma once

#include <cstddef>

#include "schedule/schedule.hpp"

namespace dpcomm {

// The buffer in `chunks` equal parts, each of which takes all of the schedule's rounds, one round
// after the part before it: every level of a tree works at once, on different parts. Parts keep the
// order of their additions.
Schedule pipelined(const Schedule& schedule, int chunks);

// How many parts a buffer of `bytes` is worth: a power of two; 1 where each rank is busy in every
// round as it is.
int chunks_for(Algorithm algorithm, std::size_t bytes);

}  // namespace dpcomm
