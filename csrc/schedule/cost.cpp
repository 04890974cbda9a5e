#include "schedule/cost.hpp"

#include <algorithm>

namespace dpcomm {

Cost cost(std::span<const Schedule> ranks, double bytes) {
  Cost total;
  if (ranks.empty()) return total;
  const double block = bytes / ranks[0].blocks;
  const auto length = [&](Blocks blocks) { return block * (blocks.end - blocks.begin); };

  for (std::size_t index = 0; index < ranks[0].rounds.size(); ++index) {
    double messages = 0, moved = 0, added = 0;
    for (const Schedule& schedule : ranks) {
      const Round& round = schedule.rounds[index];
      double out = 0, in = 0, sum = 0;
      for (const Send& send : round.sends) out += length(send.blocks);
      for (const Receive& receive : round.receives) {
        in += length(receive.blocks);
        if (receive.combine == Combine::kAdd) sum += length(receive.blocks);
      }
      messages = std::max(messages, static_cast<double>(round.sends.size()));
      moved = std::max({moved, out, in});
      added = std::max(added, sum);
    }
    total.rounds += messages > 0;
    total.messages += messages;
    total.bytes += moved;
    total.additions += added;
  }
  return total;
}

double seconds(const Cost& cost, const Machine& machine) {
  return cost.messages * machine.alpha + cost.bytes * machine.beta + cost.additions * machine.gamma;
}

}  // namespace dpcomm
