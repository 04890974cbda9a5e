#include "schedule/hierarchical.hpp"

#include <algorithm>
#include <bit>
#include <vector>

#include "schedule/tree.hpp"

namespace dpcomm {
namespace {

std::vector<int> ranks_of(int host, std::span<const int> hosts) {
  std::vector<int> ranks;
  for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank) {
    if (hosts[rank] == host) ranks.push_back(rank);
  }
  return ranks;
}

int place_of(int rank, const std::vector<int>& members) {
  return static_cast<int>(std::find(members.begin(), members.end(), rank) - members.begin());
}

// The rounds of a schedule among `members`, each of whose blocks is `blocks` of ours.
std::vector<Round> among(const std::vector<int>& members, std::vector<Round> rounds, int blocks) {
  const auto widen = [&](Blocks& own) { own = {own.begin * blocks, own.end * blocks}; };
  for (Round& round : rounds) {
    for (Send& send : round.sends) send.peer = members[send.peer], widen(send.blocks);
    for (Receive& receive : round.receives) {
      receive.peer = members[receive.peer], widen(receive.blocks);
    }
    widen(round.completes);
  }
  return rounds;
}

}  // namespace

Schedule hierarchical(int rank, std::span<const int> hosts, Algorithm outer) {
  std::vector<int> leaders;
  std::size_t largest = 0;
  for (int other = 0; other < static_cast<int>(hosts.size()); ++other) {
    const std::vector<int> ranks = ranks_of(hosts[other], hosts);
    if (ranks[0] == other) leaders.push_back(other);
    largest = std::max(largest, ranks.size());
  }
  const std::vector<int> neighbours = ranks_of(hosts[rank], hosts);
  const int place = place_of(rank, neighbours);
  const int count = static_cast<int>(neighbours.size());

  Schedule schedule =
      all_reduce(outer, place_of(neighbours[0], leaders), static_cast<int>(leaders.size()));
  schedule.rank = rank;
  schedule.size = static_cast<int>(hosts.size());
  schedule.rounds = among(leaders, std::move(schedule.rounds), 1);
  // Who does not lead keeps the count of rounds, with nothing to do.
  if (place != 0) schedule.rounds.assign(schedule.rounds.size(), {});

  // Small hosts wait for the largest; the sum of one host is not complete.
  const int depth = std::bit_width(static_cast<unsigned>(largest) - 1);
  auto up = among(neighbours, tree_reduce(place, count, 0).rounds, schedule.blocks);
  auto down = among(neighbours, tree_broadcast(place, count, 0).rounds, schedule.blocks);
  up.resize(depth);
  down.resize(depth);
  for (Round& round : up) round.completes = {};
  schedule.rounds.insert(schedule.rounds.begin(), up.begin(), up.end());
  schedule.rounds.insert(schedule.rounds.end(), down.begin(), down.end());
  return schedule;
}

}  // namespace dpcomm
