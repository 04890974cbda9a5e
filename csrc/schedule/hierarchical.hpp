#pragma once

#include <span>

#include "schedule/schedule.hpp"

namespace dpcomm {

// `hosts` says which host each rank is on. The ranks of a host add up to the first of them by a
// binomial tree, these leaders all-reduce by `outer`, and each sends the result back down its tree:
// between hosts there is no more traffic than if each had one rank. Hosts may be of any shape.
Schedule hierarchical(int rank, std::span<const int> hosts, Algorithm outer);

}  // namespace dpcomm
