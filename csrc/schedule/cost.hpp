#pragma once

#include <span>

#include "schedule/schedule.hpp"

namespace dpcomm {

// What a schedule costs on its critical path: in each round the slowest rank counts.
struct Cost {
  int rounds = 0;
  double messages = 0;   // sent by one rank
  double bytes = 0;      // sent or received by one rank, whichever is more
  double additions = 0;  // bytes added up by one rank
};

// Read off the rounds of all ranks for a buffer of `bytes`.
Cost cost(std::span<const Schedule> ranks, double bytes);

// Hockney's model with an addition term (Thakur, Rabenseifner and Gropp 2005).
struct Machine {
  double alpha;  // seconds a message
  double beta;   // seconds a byte moved
  double gamma;  // seconds a byte added
};

double seconds(const Cost& cost, const Machine& machine);

}  // namespace dpcomm
