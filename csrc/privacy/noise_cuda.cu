#include "base/cuda.hpp"
#include "privacy/chacha20.hpp"
#include "privacy/gaussian.hpp"
#include "privacy/noise_cuda.hpp"
#include "privacy/noise_lanes.hpp"
#include "privacy/philox.hpp"
#include "privacy/scalar.hpp"

namespace dpcomm {
namespace {

constexpr unsigned kWarps = 8;                        // of a block
constexpr unsigned kRows = kNoiseTile / kNoiseLanes;  // of 32 elements in a tile
static_assert(kNoiseLanes == kWarpSize);

// The noise of one lane's element in each row of a tile.
template <Generator kGenerator>
__device__ __forceinline__ void draw(const NoiseTask& task, std::uint64_t tile, unsigned lane,
                                     float* noise) {
  std::uint32_t words[kRows];
  if constexpr (kGenerator == Generator::kChaCha20) {
    const auto input = chacha20_input(Purpose::kNoise, tile * kNoiseLanes + lane, task.step);
    ChaCha20<std::uint32_t>::block(task.key, input.data(), words);
  } else {
    for (unsigned row = 0; row < kRows; row += 4) {
      const std::uint64_t block = (tile * kRows + row) / 4 * kNoiseLanes + lane;
      std::uint64_t counter[4] = {block, block >> 32, task.step, task.step >> 32};
      philox4x32<Scalar>(counter, task.key[0], task.key[1]);
      for (unsigned k = 0; k < 4; ++k) words[row + k] = static_cast<std::uint32_t>(counter[k]);
    }
  }
  for (unsigned row = 0; row < kRows; row += 2) {
    gaussian_pair<Scalar>(words[row], words[row + 1], noise[row], noise[row + 1]);
  }
}

// A warp takes a tile: each lane computes whole blocks of the generator, and the warp loads and
// stores whole rows. The loads come first, so that memory and arithmetic overlap.
template <Generator kGenerator>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    add_noise_kernel(float* data, std::uint64_t count, std::uint64_t offset,
                     const __grid_constant__ NoiseTask task) {
  const unsigned lane = threadIdx.x % kWarpSize;
  const std::uint64_t tile =
      offset / kNoiseTile + std::uint64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  // Of the lane's first element, counted from data; before data it wraps, and is past count.
  const std::uint64_t first = tile * kNoiseTile + lane - offset;
  float values[kRows];
  for (unsigned row = 0; row < kRows; ++row) {
    const std::uint64_t i = first + row * kWarpSize;
    values[row] = i < count ? data[i] : 0;
  }
  float noise[kRows];
  draw<kGenerator>(task, tile, lane, noise);
  for (unsigned row = 0; row < kRows; ++row) {
    const std::uint64_t i = first + row * kWarpSize;
    if (i < count) data[i] = ::fmaf(task.std, noise[row], values[row]) * task.scale;
  }
}

}  // namespace

void add_noise_and_scale(float* data, std::size_t count, std::uint64_t offset,
                         const NoiseSpec& spec, float scale, Stream stream) {
  const NoiseTask task = noise_task(spec, count, offset, scale);
  if (count == 0) return;
  const std::uint64_t tiles = (offset % kNoiseTile + count - 1) / kNoiseTile + 1;
  const Grid grid = {.blocks = static_cast<unsigned>((tiles + kWarps - 1) / kWarps),
                     .threads = kWarps * kWarpSize};
  launch(grid, stream,
         spec.generator == Generator::kChaCha20 ? add_noise_kernel<Generator::kChaCha20>
                                                : add_noise_kernel<Generator::kPhilox>,
         data, count, offset, task);
}

void add_noise(float* data, std::size_t count, std::uint64_t offset, const NoiseSpec& spec,
               Stream stream) {
  add_noise_and_scale(data, count, offset, spec, 1.0f, stream);
}

}  // namespace dpcomm
