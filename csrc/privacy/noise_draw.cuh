#pragma once

#include "base/cuda.hpp"
#include "privacy/chacha20.hpp"
#include "privacy/gaussian.hpp"
#include "privacy/noise_lanes.hpp"
#include "privacy/philox.hpp"
#include "privacy/scalar.hpp"

// How the kernels of noise_cuda.cu and update_cuda.cu divide the elements: a warp takes a tile, in
// which each lane computes whole blocks of the generator and the warp loads and stores whole rows.

namespace dpcomm {

inline constexpr unsigned kNoiseWarps = 8;                   // of a thread block
inline constexpr unsigned kRows = kNoiseTile / kNoiseLanes;  // of 32 elements in a tile
static_assert(kNoiseLanes == kWarpSize);

// The tile of this warp.
struct NoisePlace {
  unsigned lane = threadIdx.x % kWarpSize;
  std::uint64_t tile;
  std::uint64_t first;  // of the lane's elements, from the range's; before the range it wraps

  __device__ explicit NoisePlace(std::uint64_t offset)
      : tile(offset / kNoiseTile + std::uint64_t{blockIdx.x} * kNoiseWarps +
             threadIdx.x / kWarpSize),
        first(tile * kNoiseTile + lane - offset) {}

  __device__ std::uint64_t at(unsigned row) const { return first + row * kWarpSize; }
};

// The noise of one lane's element in each row of a tile.
template <Generator kGenerator>
__device__ __forceinline__ void draw(const NoiseTask& task, const NoisePlace& place, float* noise) {
  std::uint32_t words[kRows];
  const std::uint64_t step = task.step + (task.counter == nullptr ? 0 : *task.counter);
  if constexpr (kGenerator == Generator::kChaCha20) {
    const auto input = chacha20_input(Purpose::kNoise, place.tile * kNoiseLanes + place.lane, step);
    ChaCha20<std::uint32_t>::block(task.key, input.data(), words);
  } else {
    for (unsigned row = 0; row < kRows; row += 4) {
      const std::uint64_t block = (place.tile * kRows + row) / 4 * kNoiseLanes + place.lane;
      std::uint64_t counter[4] = {block, block >> 32, step, step >> 32};
      philox4x32<Scalar>(counter, task.key[0], task.key[1]);
      for (unsigned k = 0; k < 4; ++k) words[row + k] = static_cast<std::uint32_t>(counter[k]);
    }
  }
  for (unsigned row = 0; row < kRows; row += 2) {
    gaussian_pair<Scalar>(words[row], words[row + 1], noise[row], noise[row + 1]);
  }
}

// For `count` > 0 elements from `offset` on.
inline Grid noise_grid(std::size_t count, std::uint64_t offset) {
  const std::uint64_t tiles = (offset % kNoiseTile + count - 1) / kNoiseTile + 1;
  return {.blocks = static_cast<unsigned>((tiles + kNoiseWarps - 1) / kNoiseWarps),
          .threads = kNoiseWarps * kWarpSize};
}

}  // namespace dpcomm
