#pragma once

#include <cstddef>
#include <cstdint>

#include "base/stream.hpp"
#include "privacy/noise.hpp"

namespace dpcomm {

// noise.hpp's function, with the same bits, for `data` in the memory of the current device. Returns
// once the kernel is in the stream; nothing is allocated and nothing waits, so that a CUDA graph
// can capture it. A graph repeats its arguments, and no noise may be drawn twice: so the kernel
// adds to the spec's step what it finds in `counter`, on the device, if that is not null.
void add_noise(float* data, std::size_t count, std::uint64_t offset, const NoiseSpec& spec,
               float scale, Stream stream, const std::uint64_t* counter = nullptr);

}  // namespace dpcomm
