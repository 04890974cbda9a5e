#include "privacy/noise_cuda.hpp"
#include "privacy/noise_draw.cuh"

namespace dpcomm {
namespace {

// The loads come first, so that memory and arithmetic overlap.
template <Generator kGenerator>
__global__ void __launch_bounds__(kNoiseWarps* kWarpSize)
    add_noise_kernel(float* data, std::uint64_t count, std::uint64_t offset,
                     const __grid_constant__ NoiseTask task) {
  const NoisePlace place(offset);
  float values[kRows];
  for (unsigned row = 0; row < kRows; ++row) {
    const std::uint64_t i = place.at(row);
    values[row] = i < count ? data[i] : 0;
  }
  float noise[kRows];
  draw<kGenerator>(task, place, noise);
  for (unsigned row = 0; row < kRows; ++row) {
    const std::uint64_t i = place.at(row);
    if (i < count) data[i] = ::fmaf(task.std, noise[row], values[row]) * task.scale;
  }
}

}  // namespace

void add_noise(float* data, std::size_t count, std::uint64_t offset, const NoiseSpec& spec,
               float scale, Stream stream, const std::uint64_t* counter) {
  NoiseTask task = noise_task(spec, count, offset, scale);
  task.counter = counter;
  if (count == 0) return;
  launch(noise_grid(count, offset), stream,
         spec.generator == Generator::kChaCha20 ? add_noise_kernel<Generator::kChaCha20>
                                                : add_noise_kernel<Generator::kPhilox>,
         data, count, offset, task);
}

}  // namespace dpcomm
