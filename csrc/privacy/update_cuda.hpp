#pragma once

#include "base/stream.hpp"
#include "privacy/update.hpp"

namespace dpcomm {

// update.hpp's update(), with the same bits, for a shard in the memory of the current device.
// Returns once the kernel is in the stream; nothing is allocated and nothing waits, so that a CUDA
// graph can capture it.
void update(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
            const NoiseSpec& spec, float scale, const Optimizer& optimizer, Stream stream);

}  // namespace dpcomm
