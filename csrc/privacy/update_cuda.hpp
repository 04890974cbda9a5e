#pragma once

#include "base/stream.hpp"
#include "privacy/update.hpp"

namespace dpcomm {

// What changes from one run of a captured graph to the next, in the device's memory; null where the
// arguments of the call say it.
struct Captured {
  const std::uint64_t* counter = nullptr;   // added to the noise's step (noise_cuda.hpp)
  const float* adam_corrections = nullptr;  // lr / (1 - beta1^count), 1 / sqrt(1 - beta2^count)
};

// update.hpp's update(), with the same bits, for a shard in the memory of the current device.
// Returns once the kernel is in the stream; nothing is allocated and nothing waits, so that a CUDA
// graph can capture it.
void update(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
            const NoiseSpec& spec, float scale, const Optimizer& optimizer, Stream stream,
            const Captured& captured = {});

}  // namespace dpcomm
