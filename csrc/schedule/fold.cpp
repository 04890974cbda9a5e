#include "schedule/fold.hpp"

#include <bit>

namespace dpcomm {

Schedule folded(int rank, int size, const std::function<Schedule(int, int)>& core) {
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(size)));
  const int extra = size - power;
  if (extra == 0) return core(rank, size);

  const bool paired = rank < 2 * extra;
  const bool sits_out = paired && rank % 2 == 1;
  const auto to_core = [&](int real) { return real < 2 * extra ? real / 2 : real - extra; };
  const auto to_real = [&](int inner) { return inner < extra ? 2 * inner : inner + extra; };

  // One that sits out keeps the count of rounds and of blocks, with nothing to do in between.
  const Schedule inner = core(to_core(rank), power);
  const Blocks all{0, inner.blocks};
  Round fold, unfold;
  if (sits_out) {
    fold.sends.push_back({rank - 1, all});
    unfold.receives.push_back({rank - 1, all, Combine::kCopy});
  } else if (paired) {
    fold.receives.push_back({rank + 1, all, Combine::kAdd});
    unfold.sends.push_back({rank + 1, all});
  }

  Schedule schedule{.rank = rank, .size = size, .blocks = inner.blocks, .rounds = {fold}};
  for (Round round : inner.rounds) {
    if (sits_out) round = Round{};
    for (Send& send : round.sends) send.peer = to_real(send.peer);
    for (Receive& receive : round.receives) receive.peer = to_real(receive.peer);
    schedule.rounds.push_back(round);
  }
  schedule.rounds.push_back(unfold);
  return schedule;
}

}  // namespace dpcomm
