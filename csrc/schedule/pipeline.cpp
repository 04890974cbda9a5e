#include "schedule/pipeline.hpp"

#include <algorithm>
#include <bit>

namespace dpcomm {
namespace {

// Half of a second-level cache, less what is staged; and no longer a schedule than pays.
constexpr std::size_t kChunkBytes = std::size_t{256} << 10;
constexpr std::size_t kMostChunks = 128;

}  // namespace

Schedule pipelined(const Schedule& schedule, int chunks) {
  Schedule all = schedule;
  all.blocks = schedule.blocks * chunks;
  all.rounds.assign(schedule.rounds.size() + chunks - 1, {});
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const auto moved = [&](Blocks own) {
      const int first = chunk * schedule.blocks;
      return Blocks{first + own.begin, first + own.end};
    };
    for (std::size_t index = 0; index < schedule.rounds.size(); ++index) {
      const Round& from = schedule.rounds[index];
      Round& to = all.rounds[index + chunk];
      for (Send send : from.sends) to.sends.push_back({send.peer, moved(send.blocks)});
      for (Receive receive : from.receives) {
        to.receives.push_back({receive.peer, moved(receive.blocks), receive.combine});
      }
      if (!from.completes.empty()) to.completes = moved(from.completes);
    }
  }
  return all;
}

int chunks_for(Algorithm algorithm, std::size_t bytes) {
  switch (algorithm) {
    case Algorithm::kTree:
    case Algorithm::kDoubleTree:
    case Algorithm::kHierarchical:
      return static_cast<int>(
          std::bit_floor(std::clamp<std::size_t>(bytes / kChunkBytes, 1, kMostChunks)));
    default:
      return 1;
  }
}

}  // namespace dpcomm
