#pragma once

#include <cstddef>
#include <cstdint>

#include "privacy/noise.hpp"

namespace dpcomm {

// What the loops of a CPU and the kernels of a GPU need, prepared once a call.
struct NoiseTask {
  Generator generator;
  std::uint32_t key[8];  // of ChaCha20, or of Philox in the first two words
  std::uint64_t step;
  float std;
  float scale;
};

// UsageError as in add_noise().
NoiseTask noise_task(const NoiseSpec& spec, std::size_t count, std::uint64_t offset, float scale);

// data[i] = fma(std, noise(offset + i), data[i]) * scale, kCount lanes at a time.
template <int kCount>
void add_noise_lanes(float* data, std::size_t count, std::uint64_t offset, const NoiseTask& task);

}  // namespace dpcomm
