#pragma once

#include <cstddef>
#include <cstdint>

#include "privacy/noise_lanes.hpp"
#include "privacy/update_rule.hpp"

namespace dpcomm {

// update(), kCount lanes at a time, for each Rule of update_rule.hpp.
template <int kCount, class Rule>
void update_lanes(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
                  const NoiseTask& task, const Rule& rule);

}  // namespace dpcomm
