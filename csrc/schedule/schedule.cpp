#include "schedule/schedule.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include "schedule/butterfly.hpp"
#include "schedule/double_tree.hpp"
#include "schedule/hierarchical.hpp"
#include "schedule/naive.hpp"
#include "schedule/recursive_doubling.hpp"
#include "schedule/ring.hpp"
#include "schedule/round_robin.hpp"
#include "schedule/tree.hpp"

namespace dpcomm {
namespace {

[[noreturn]] void refuse(std::string_view operation, Algorithm algorithm) {
  throw std::invalid_argument(std::string(operation) + " has no schedule '" +
                              std::string(name_of(algorithm)) + "': use ring or round_robin");
}

}  // namespace

Schedule operator+(Schedule first, const Schedule& second) {
  first.rounds.insert(first.rounds.end(), second.rounds.begin(), second.rounds.end());
  return first;
}

Algorithm algorithm_of(std::string_view name) {
  std::string known;
  for (std::size_t algorithm = 0; algorithm < kAlgorithmNames.size(); ++algorithm) {
    if (kAlgorithmNames[algorithm] == name) return static_cast<Algorithm>(algorithm);
    known += (known.empty() ? "" : ", ") + std::string(kAlgorithmNames[algorithm]);
  }
  throw std::invalid_argument("algorithm '" + std::string(name) + "' is unknown: use " + known);
}

Schedule all_reduce(Algorithm algorithm, int rank, int size, std::span<const int> hosts) {
  switch (algorithm) {
    case Algorithm::kNaive:
      return naive(rank, size);
    case Algorithm::kRing:
      return ring(rank, size);
    case Algorithm::kTree:
      return tree(rank, size);
    case Algorithm::kButterfly:
      return butterfly(rank, size);
    case Algorithm::kRoundRobin:
      return round_robin(rank, size);
    case Algorithm::kRecursiveDoubling:
      return recursive_doubling(rank, size);
    case Algorithm::kDoubleTree:
      return double_tree(rank, size);
    case Algorithm::kHierarchical: {
      // The butterfly between hosts: as few bytes as the ring, in few rounds.
      const std::vector<int> one_host(hosts.empty() ? size : 0);
      return hierarchical(rank, hosts.empty() ? one_host : hosts, Algorithm::kButterfly);
    }
    case Algorithm::kMpi:
    case Algorithm::kNccl:
      break;
  }
  throw std::invalid_argument("all_reduce has no schedule '" + std::string(name_of(algorithm)) +
                              "'");
}

Schedule reduce_scatter(Algorithm algorithm, int rank, int size) {
  switch (algorithm) {
    case Algorithm::kRing:
      return ring_reduce_scatter(rank, size);
    case Algorithm::kRoundRobin:
      return round_robin_reduce_scatter(rank, size);
    default:
      refuse("reduce_scatter", algorithm);
  }
}

Schedule all_gather(Algorithm algorithm, int rank, int size) {
  switch (algorithm) {
    case Algorithm::kRing:
      return ring_all_gather(rank, size);
    case Algorithm::kRoundRobin:
      return round_robin_all_gather(rank, size);
    default:
      refuse("all_gather", algorithm);
  }
}

Schedule broadcast(int rank, int size, int root) { return tree_broadcast(rank, size, root); }

Schedule reduce(int rank, int size, int root) { return tree_reduce(rank, size, root); }

}  // namespace dpcomm
