#include "schedule/tree.hpp"

#include <algorithm>

namespace dpcomm {
namespace {

constexpr Blocks kAll{0, 1};

}  // namespace

Schedule tree_reduce(int rank, int size, int root) {
  Schedule schedule{.rank = rank, .size = size, .blocks = 1};
  const int distance = (rank + size - root) % size;
  for (int step = 1; step < size; step *= 2) {
    Round& round = schedule.rounds.emplace_back();
    if (distance % (2 * step) == step) {
      round.sends.push_back({(rank + size - step) % size, kAll});
    } else if (distance % (2 * step) == 0 && distance + step < size) {
      round.receives.push_back({(rank + step) % size, kAll, Combine::kAdd});
    }
  }
  if (size == 1) schedule.rounds.emplace_back();
  if (rank == root) schedule.rounds.back().completes = kAll;
  return schedule;
}

Schedule tree_broadcast(int rank, int size, int root) {
  Schedule schedule = tree_reduce(rank, size, root);
  if (size == 1) schedule.rounds.clear();
  std::reverse(schedule.rounds.begin(), schedule.rounds.end());
  for (Round& round : schedule.rounds) {
    Round mirrored;
    for (const Receive& receive : round.receives) mirrored.sends.push_back({receive.peer, kAll});
    for (const Send& send : round.sends) {
      mirrored.receives.push_back({send.peer, kAll, Combine::kCopy});
    }
    round = mirrored;
  }
  return schedule;
}

Schedule tree(int rank, int size) {
  return tree_reduce(rank, size, 0) + tree_broadcast(rank, size, 0);
}

}  // namespace dpcomm
