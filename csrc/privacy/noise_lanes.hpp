#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "privacy/noise.hpp"

namespace dpcomm {

// What the loops of a CPU and the kernels of a GPU need, prepared once a call.
struct NoiseTask {
  Generator generator;
  std::uint32_t key[8];  // of ChaCha20, or of Philox in the first two words
  std::uint64_t step;
  float std;
  float scale;
  const std::uint64_t* counter = nullptr;  // of a GPU, in its memory: added to `step` as it runs
};

// UsageError as in add_noise().
NoiseTask noise_task(const NoiseSpec& spec, std::size_t count, std::uint64_t offset, float scale);

// Calls work(begin, length) on each thread, for a part of [0, count) that is whole tiles of the
// elements from `offset` on, so that no block of a generator is computed twice.
void parallel_tiles(int threads, std::size_t count, std::uint64_t offset,
                    const std::function<void(std::size_t begin, std::size_t length)>& work);

// The loops, kCount lanes at a time.

// The noise of the kNoiseTile elements from tile * kNoiseTile on.
template <int kCount>
void noise_tile(const NoiseTask& task, std::uint64_t tile, float* out);

// data[i] = fma(std, noise(offset + i), data[i]) * scale.
template <int kCount>
void add_noise_lanes(float* data, std::size_t count, std::uint64_t offset, const NoiseTask& task);

}  // namespace dpcomm
