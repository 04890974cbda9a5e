#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

// An algorithm is data: for one rank, a list of rounds that say which blocks of the buffer go to
// whom, which come from whom, and whether what comes is added or copied. The executor runs it over
// any transport (engine/execute), check.hpp proves it, cost.hpp prices it. Nothing here knows of
// memory, data types or privacy.

namespace dpcomm {

// A contiguous run of blocks, [begin, end).
struct Blocks {
  int begin = 0;
  int end = 0;

  bool empty() const { return begin == end; }
  bool operator==(const Blocks&) const = default;
};

struct Send {
  int peer;
  Blocks blocks;
};

enum class Combine { kAdd, kCopy };

struct Receive {
  int peer;
  Blocks blocks;
  Combine combine;
};

// All messages of a round are in flight together and carry what the buffer held before the round.
// Additions into a block are done in the order of the ranks that send them, one's own part in its
// own place, so that ranks that add the same parts get the same bits.
struct Round {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  // Blocks that hold the whole sum on this rank once the round is done. The executor calls the
  // epilogue on them before the next round sends them on.
  Blocks completes;
};

struct Schedule {
  int rank = 0;
  int size = 1;
  int blocks = 1;  // the buffer is cut into this many, nearly equal
  std::vector<Round> rounds;
};

// `first`, then `second`, over the same blocks.
Schedule operator+(Schedule first, const Schedule& second);

enum class Algorithm {
  kNaive,
  kRing,
  kTree,
  kButterfly,
  kRoundRobin,
  kRecursiveDoubling,
  kDoubleTree,
  kHierarchical,
  kMpi,  // MPI_Allreduce, and
  kNccl  // NCCL's reduce-scatter and all-gather: the library's own, no schedules of ours
};

inline constexpr std::array<std::string_view, 10> kAlgorithmNames = {
    "naive",       "ring",         "tree", "butterfly", "round_robin", "recursive_doubling",
    "double_tree", "hierarchical", "mpi",  "nccl"};

constexpr std::string_view name_of(Algorithm algorithm) {
  return kAlgorithmNames[static_cast<std::size_t>(algorithm)];
}
Algorithm algorithm_of(std::string_view name);

// Those that are schedules.
inline constexpr Algorithm kAlgorithms[] = {Algorithm::kNaive,      Algorithm::kRing,
                                            Algorithm::kTree,       Algorithm::kButterfly,
                                            Algorithm::kRoundRobin, Algorithm::kRecursiveDoubling,
                                            Algorithm::kDoubleTree, Algorithm::kHierarchical};

// Whether every sum is in the order of ranks. All such algorithms give the same bits, whatever the
// length of the buffer; of the others each has an order of its own, by the place of an element.
inline bool adds_in_order_of_ranks(Algorithm algorithm) {
  return algorithm == Algorithm::kNaive || algorithm == Algorithm::kRoundRobin;
}

// Every rank ends with the sum of all ranks' buffers. `hosts` says which host each rank is on, for
// the hierarchical one; empty: all on one.
Schedule all_reduce(Algorithm algorithm, int rank, int size, std::span<const int> hosts = {});

// Rank r ends with the sum of block r of `size` blocks. Only ring and round-robin leave one block
// with each rank.
Schedule reduce_scatter(Algorithm algorithm, int rank, int size);

// Rank r begins with block r of `size` blocks; every rank ends with all of them. Ring or
// round-robin.
Schedule all_gather(Algorithm algorithm, int rank, int size);

// The root's buffer goes to every rank, by a binomial tree.
Schedule broadcast(int rank, int size, int root);

// The sum of all buffers goes to the root, by a binomial tree.
Schedule reduce(int rank, int size, int root);

}  // namespace dpcomm
