#include "schedule/round_robin.hpp"

namespace dpcomm {
namespace {

Blocks block_of(int rank) { return {rank, rank + 1}; }

}  // namespace

// Peers are taken in the order rank+1, rank+2, …, so that no two ranks turn to the same one first.

Schedule round_robin_reduce_scatter(int rank, int size) {
  Round round{.completes = block_of(rank)};
  for (int step = 1; step < size; ++step) {
    const int to = (rank + step) % size;
    const int from = (rank + size - step) % size;
    round.sends.push_back({to, block_of(to)});
    round.receives.push_back({from, block_of(rank), Combine::kAdd});
  }
  return {.rank = rank, .size = size, .blocks = size, .rounds = {round}};
}

Schedule round_robin_all_gather(int rank, int size) {
  Round round;
  for (int step = 1; step < size; ++step) {
    const int to = (rank + step) % size;
    const int from = (rank + size - step) % size;
    round.sends.push_back({to, block_of(rank)});
    round.receives.push_back({from, block_of(from), Combine::kCopy});
  }
  return {.rank = rank, .size = size, .blocks = size, .rounds = {round}};
}

Schedule round_robin(int rank, int size) {
  return round_robin_reduce_scatter(rank, size) + round_robin_all_gather(rank, size);
}

}  // namespace dpcomm
