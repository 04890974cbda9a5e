#include <cmath>

#include "base/error.hpp"
#include "privacy/scalar.hpp"
#include "privacy/update.hpp"
#include "privacy/update_lanes.hpp"

namespace dpcomm {
namespace {

void check(const char* name, double value, bool holds, const char* fix) {
  DPCOMM_CHECK(holds && std::isfinite(value), UsageError, name, " ", value, ": ", fix);
}

void check_common(double lr, double weight_decay) {
  check("lr", lr, lr >= 0, "give a finite number, 0 or more");
  check("weight_decay", weight_decay, weight_decay >= 0, "give a finite number, 0 or more");
}

UpdateRule rule_of(const Sgd& sgd) {
  check_common(sgd.lr, sgd.weight_decay);
  check("momentum", sgd.momentum, sgd.momentum >= 0, "give a finite number, 0 or more");
  DPCOMM_CHECK(!sgd.nesterov || sgd.momentum > 0, UsageError,
               "nesterov without momentum: give a momentum");
  const auto lr = static_cast<float>(sgd.lr);
  const auto weight_decay = static_cast<float>(sgd.weight_decay);
  if (sgd.momentum == 0) return SgdRule{lr, weight_decay};
  return MomentumRule{lr, weight_decay, static_cast<float>(sgd.momentum), sgd.nesterov};
}

UpdateRule rule_of(const Adam& adam) {
  check_common(adam.lr, adam.weight_decay);
  check("beta1", adam.beta1, adam.beta1 >= 0 && adam.beta1 < 1, "give a number from 0 to below 1");
  check("beta2", adam.beta2, adam.beta2 >= 0 && adam.beta2 < 1, "give a number from 0 to below 1");
  check("eps", adam.epsilon, adam.epsilon >= 0, "give a finite number, 0 or more");
  DPCOMM_CHECK(adam.count >= 1, UsageError, "count 0: the first update is number 1");
  const auto t = static_cast<double>(adam.count);
  const double decay = adam.weight_decay;
  const bool decoupled = adam.decoupled_weight_decay;
  const auto f = [](double value) { return static_cast<float>(value); };
  return AdamRule{.beta1 = f(adam.beta1),
                  .one_minus_beta1 = f(1 - adam.beta1),
                  .beta2 = f(adam.beta2),
                  .one_minus_beta2 = f(1 - adam.beta2),
                  .step_size = f(adam.lr / (1 - std::pow(adam.beta1, t))),
                  .root_factor = f(1 / std::sqrt(1 - std::pow(adam.beta2, t))),
                  .epsilon = f(adam.epsilon),
                  .gradient_decay = decoupled ? 0.0f : f(decay),
                  .shrink = decoupled ? f(1 - adam.lr * decay) : 1.0f};
}

// The plain reference.
template <class Rule>
void update_scalar(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
                   const NoiseSpec& spec, const NoiseTask& task, const Rule& rule) {
  for (std::size_t i = 0; i < count; ++i) {
    const float g = std::fma(task.std, noise_at(spec, offset + i), shard.gradient[i]) * task.scale;
    float state[2];
    for (int k = 0; k < Rule::kStates; ++k) state[k] = shard.states[k][i];
    rule.template step<Scalar>(g, shard.parameters[i], state);
    for (int k = 0; k < Rule::kStates; ++k) shard.states[k][i] = state[k];
  }
}

}  // namespace

int states_of(const Optimizer& optimizer) {
  return std::visit([](const auto& rule) { return rule.kStates; }, update_rule(optimizer));
}

UpdateRule update_rule(const Optimizer& optimizer) {
  return std::visit([](const auto& one) { return rule_of(one); }, optimizer);
}

void update(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
            const NoiseSpec& spec, float scale, const Optimizer& optimizer, int threads, Isa isa) {
  const NoiseTask task = noise_task(spec, count, offset, scale);
  const UpdateRule rule = update_rule(optimizer);
  parallel_tiles(threads, count, offset, [&](std::size_t begin, std::size_t some) {
    UpdateShard part{shard.gradient + begin, shard.parameters + begin, {}};
    for (int k = 0; k < 2; ++k) {
      part.states[k] = shard.states[k] == nullptr ? nullptr : shard.states[k] + begin;
    }
    std::visit(
        [&](const auto& one) {
          switch (isa) {
            case Isa::kScalar:
              return update_scalar(part, some, offset + begin, spec, task, one);
            case Isa::kGeneric:
              return update_lanes<4>(part, some, offset + begin, task, one);
            case Isa::kAvx2:
              return update_lanes<8>(part, some, offset + begin, task, one);
            case Isa::kAvx512:
              return update_lanes<16>(part, some, offset + begin, task, one);
          }
        },
        rule);
  });
}

}  // namespace dpcomm
