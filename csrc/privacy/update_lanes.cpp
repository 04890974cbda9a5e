// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "privacy/update_lanes.hpp"

#include "privacy/lanes.hpp"
#include "privacy/scalar.hpp"

namespace dpcomm {
namespace {

using L = Lanes;
constexpr int kCount = Lanes::kCount;

// kCount numbers from `i` on, or one, where L is Scalar.
template <class L, class Load, class Store, class Rule>
DPCOMM_HD void step(const UpdateShard& shard, std::size_t i, typename L::Float noise,
                    const NoiseTask& task, const Rule& rule, Load load, Store store) {
  using Float = typename L::Float;
  const Float g =
      L::fma(L::broadcast(task.std), noise, load(shard.gradient + i)) * L::broadcast(task.scale);
  Float p = load(shard.parameters + i);
  Float state[2];
  for (int k = 0; k < Rule::kStates; ++k) state[k] = load(shard.states[k] + i);
  rule.template step<L>(g, p, state);
  store(shard.parameters + i, p);
  for (int k = 0; k < Rule::kStates; ++k) store(shard.states[k] + i, state[k]);
}

}  // namespace

template <int kLanes, class Rule>
void update_lanes(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
                  const NoiseTask& task, const Rule& rule) {
  static_assert(kLanes == kCount);
  alignas(64) float noise[kNoiseTile] = {};
  for (std::size_t done = 0; done < count;) {
    const std::uint64_t element = offset + done;
    const std::uint64_t skip = element % kNoiseTile;
    const std::size_t rest = count - done;
    const std::size_t end = done + (kNoiseTile - skip < rest ? kNoiseTile - skip : rest);
    if (task.std > 0) noise_tile<kCount>(task, element / kNoiseTile, noise);
    const float* from = noise + skip;
    for (; done + kCount <= end; done += kCount, from += kCount) {
      step<L>(
          shard, done, L::load(from), task, rule, [](const float* at) { return L::load(at); },
          [](float* at, L::Float value) { L::store(at, value); });
    }
    for (; done < end; ++done, ++from) {
      step<Scalar>(
          shard, done, *from, task, rule, [](const float* at) { return *at; },
          [](float* at, float value) { *at = value; });
    }
  }
}

template void update_lanes<kCount>(const UpdateShard&, std::size_t, std::uint64_t, const NoiseTask&,
                                   const SgdRule&);
template void update_lanes<kCount>(const UpdateShard&, std::size_t, std::uint64_t, const NoiseTask&,
                                   const MomentumRule&);
template void update_lanes<kCount>(const UpdateShard&, std::size_t, std::uint64_t, const NoiseTask&,
                                   const AdamRule&);

}  // namespace dpcomm
