#include "schedule/recursive_doubling.hpp"

#include "schedule/fold.hpp"

namespace dpcomm {
namespace {

Schedule power_of_two(int rank, int size) {
  constexpr Blocks kAll{0, 1};
  Schedule schedule{.rank = rank, .size = size, .blocks = 1};
  for (int step = 1; step < size; step *= 2) {
    schedule.rounds.push_back(
        {.sends = {{rank ^ step, kAll}}, .receives = {{rank ^ step, kAll, Combine::kAdd}}});
  }
  if (size == 1) schedule.rounds.emplace_back();
  schedule.rounds.back().completes = kAll;
  return schedule;
}

}  // namespace

Schedule recursive_doubling(int rank, int size) { return folded(rank, size, power_of_two); }

}  // namespace dpcomm
