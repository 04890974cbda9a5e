#pragma once

#include <cstddef>
#include <cstdint>

#include "base/stream.hpp"
#include "privacy/noise.hpp"

namespace dpcomm {

// noise.hpp's functions, with the same bits, for `data` in the memory of the current device. They
// return once the kernel is in the stream; nothing is allocated and nothing waits, so that a CUDA
// graph can capture them.

void add_noise(float* data, std::size_t count, std::uint64_t offset, const NoiseSpec& spec,
               Stream stream);

void add_noise_and_scale(float* data, std::size_t count, std::uint64_t offset,
                         const NoiseSpec& spec, float scale, Stream stream);

}  // namespace dpcomm
