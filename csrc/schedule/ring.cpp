#include "schedule/ring.hpp"

namespace dpcomm {
namespace {

Blocks block(int index, int size) {
  const int wrapped = (index % size + size) % size;
  return {wrapped, wrapped + 1};
}

Round hop(int rank, int size, int send, int receive, Combine combine) {
  return {.sends = {{(rank + 1) % size, block(send, size)}},
          .receives = {{(rank + size - 1) % size, block(receive, size), combine}}};
}

}  // namespace

Schedule ring_reduce_scatter(int rank, int size) {
  Schedule schedule{.rank = rank, .size = size, .blocks = size};
  for (int round = 1; round < size; ++round) {
    schedule.rounds.push_back(hop(rank, size, rank - round, rank - round - 1, Combine::kAdd));
  }
  if (size == 1) schedule.rounds.emplace_back();
  schedule.rounds.back().completes = block(rank, size);
  return schedule;
}

Schedule ring_all_gather(int rank, int size) {
  Schedule schedule{.rank = rank, .size = size, .blocks = size};
  for (int round = 0; round < size - 1; ++round) {
    schedule.rounds.push_back(hop(rank, size, rank - round, rank - round - 1, Combine::kCopy));
  }
  return schedule;
}

Schedule ring(int rank, int size) {
  return ring_reduce_scatter(rank, size) + ring_all_gather(rank, size);
}

}  // namespace dpcomm
