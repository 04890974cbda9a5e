#include <type_traits>

#include "privacy/noise_draw.cuh"
#include "privacy/update_cuda.hpp"
#include "privacy/update_rule.hpp"

namespace dpcomm {
namespace {

constexpr unsigned kTogether = 4;  // rows whose loads are under way at the same time

// The gradient's loads come before the noise, so that memory and arithmetic overlap; the others
// would take too many registers there.
template <Generator kGenerator, class Rule>
__global__ void __launch_bounds__(kNoiseWarps* kWarpSize)
    update_kernel(UpdateShard shard, std::uint64_t count, std::uint64_t offset,
                  const __grid_constant__ NoiseTask task, Rule rule,
                  const float* adam_corrections) {
  if constexpr (std::is_same_v<Rule, AdamRule>) {
    if (adam_corrections != nullptr) {
      rule.step_size = adam_corrections[0];
      rule.root_factor = adam_corrections[1];
    }
  }
  const NoisePlace place(offset);
  float gradients[kRows];
  for (unsigned row = 0; row < kRows; ++row) {
    const std::uint64_t i = place.at(row);
    gradients[row] = i < count ? shard.gradient[i] : 0;
  }
  float noise[kRows];
  draw<kGenerator>(task, place, noise);
#pragma unroll
  for (unsigned first = 0; first < kRows; first += kTogether) {
    float p[kTogether];
    float states[kTogether][2];
#pragma unroll
    for (unsigned r = 0; r < kTogether; ++r) {
      const std::uint64_t i = place.at(first + r);
      p[r] = i < count ? shard.parameters[i] : 0;
      for (int k = 0; k < Rule::kStates; ++k) states[r][k] = i < count ? shard.states[k][i] : 0;
    }
#pragma unroll
    for (unsigned r = 0; r < kTogether; ++r) {
      const std::uint64_t i = place.at(first + r);
      const float g = ::fmaf(task.std, noise[first + r], gradients[first + r]) * task.scale;
      rule.template step<Scalar>(g, p[r], states[r]);
      if (i >= count) continue;
      shard.parameters[i] = p[r];
      for (int k = 0; k < Rule::kStates; ++k) shard.states[k][i] = states[r][k];
    }
  }
}

}  // namespace

void update(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
            const NoiseSpec& spec, float scale, const Optimizer& optimizer, Stream stream,
            const Captured& captured) {
  NoiseTask task = noise_task(spec, count, offset, scale);
  task.counter = captured.counter;
  const UpdateRule rule = update_rule(optimizer);
  if (count == 0) return;
  std::visit(
      [&]<class Rule>(const Rule& one) {
        launch(noise_grid(count, offset), stream,
               spec.generator == Generator::kChaCha20 ? update_kernel<Generator::kChaCha20, Rule>
                                                      : update_kernel<Generator::kPhilox, Rule>,
               shard, count, offset, task, one, captured.adam_corrections);
      },
      rule);
}

}  // namespace dpcomm
