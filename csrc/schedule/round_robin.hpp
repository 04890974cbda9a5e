#pragma once

#include "schedule/schedule.hpp"

// The direct exchange of shards: as few bytes as the ring in two rounds, at the price of p-1
// messages in each. The least latency where every rank reaches every other at full speed, as in
// shared memory.

namespace dpcomm {

// Rank r receives block r from every other rank and adds them up in one go.
Schedule round_robin_reduce_scatter(int rank, int size);

// Rank r sends block r to every other rank.
Schedule round_robin_all_gather(int rank, int size);

Schedule round_robin(int rank, int size);

}  // namespace dpcomm
