#include "schedule/butterfly.hpp"

#include "schedule/fold.hpp"

namespace dpcomm {
namespace {

// The blocks that a group of `width` neighbouring ranks shares, `rank` among them.
Blocks blocks_of(int rank, int width) {
  const int begin = rank / width * width;
  return {begin, begin + width};
}

Schedule power_of_two(int rank, int size) {
  Schedule schedule{.rank = rank, .size = size, .blocks = size};
  for (int half = size / 2; half >= 1; half /= 2) {
    const int partner = rank ^ half;
    schedule.rounds.push_back({.sends = {{partner, blocks_of(partner, half)}},
                               .receives = {{partner, blocks_of(rank, half), Combine::kAdd}}});
  }
  if (size == 1) schedule.rounds.emplace_back();
  schedule.rounds.back().completes = blocks_of(rank, 1);
  for (int half = 1; half < size; half *= 2) {
    const int partner = rank ^ half;
    schedule.rounds.push_back({.sends = {{partner, blocks_of(rank, half)}},
                               .receives = {{partner, blocks_of(partner, half), Combine::kCopy}}});
  }
  return schedule;
}

}  // namespace

Schedule butterfly(int rank, int size) { return folded(rank, size, power_of_two); }

}  // namespace dpcomm
