#include "schedule/double_tree.hpp"

#include <bit>

namespace dpcomm {
namespace {

// Positions 1 to size of a binary tree in symmetric order: the number of trailing zeros is the
// level, odd positions are leaves, and the largest power of two is the root, whose parent is 0.
int level_of(int position) { return std::countr_zero(static_cast<unsigned>(position)); }

int parent_of(int position, int size) {
  const int width = 1 << level_of(position);
  const int above = (position - width) | (2 * width);
  return above <= size ? above : position - width;
}

}  // namespace

Schedule double_tree(int rank, int size) {
  const int levels = std::bit_width(static_cast<unsigned>(size)) - 1;
  Schedule schedule{.rank = rank, .size = size, .blocks = 2};
  schedule.rounds.resize(size == 1 ? 1 : 2 * levels);
  if (size == 1) schedule.rounds[0].completes = {0, 2};

  // The second tree is the first one, a place further: a rank's position is odd in one of the two.
  for (int tree = 0; tree < 2; ++tree) {
    const Blocks half{tree, tree + 1};
    const auto rank_at = [&](int position) { return (position - 1 + tree) % size; };
    for (int position = 1; position <= size && size > 1; ++position) {
      const int parent = parent_of(position, size);
      if (parent == 0) {
        if (rank_at(position) == rank) schedule.rounds[levels - 1].completes = half;
        continue;
      }
      const int level = level_of(position);
      Round& up = schedule.rounds[level];
      Round& down = schedule.rounds[2 * levels - 1 - level];
      if (rank_at(position) == rank) {
        up.sends.push_back({rank_at(parent), half});
        down.receives.push_back({rank_at(parent), half, Combine::kCopy});
      } else if (rank_at(parent) == rank) {
        up.receives.push_back({rank_at(position), half, Combine::kAdd});
        down.sends.push_back({rank_at(position), half});
      }
    }
  }
  return schedule;
}

}  // namespace dpcomm
