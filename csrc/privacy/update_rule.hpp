#pragma once

#include <variant>

#include "base/host_device.hpp"
#include "privacy/update.hpp"

namespace dpcomm {

// One step of each optimizer, as the loops of a CPU and the kernels of a GPU run it: `p` is the
// parameter, `g` the gradient, `state` the numbers kept for it. L is Scalar or Lanes.

struct SgdRule {
  static constexpr int kStates = 0;
  float lr;
  float weight_decay;

  template <class L, class Float = typename L::Float>
  DPCOMM_HD void step(Float g, Float& p, Float*) const {
    p = p - L::broadcast(lr) * (g + L::broadcast(weight_decay) * p);
  }
};

struct MomentumRule {
  static constexpr int kStates = 1;
  float lr;
  float weight_decay;
  float momentum;
  bool nesterov;

  template <class L, class Float = typename L::Float>
  DPCOMM_HD void step(Float g, Float& p, Float* state) const {
    const Float decayed = g + L::broadcast(weight_decay) * p;
    state[0] = L::broadcast(momentum) * state[0] + decayed;
    const Float direction = nesterov ? decayed + L::broadcast(momentum) * state[0] : state[0];
    p = p - L::broadcast(lr) * direction;
  }
};

// Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015; decoupled weight decay:
// Loshchilov and Hutter, ICLR 2019.
struct AdamRule {
  static constexpr int kStates = 2;
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float step_size;    // lr / (1 - beta1^count)
  float root_factor;  // 1 / sqrt(1 - beta2^count)
  float epsilon;
  float gradient_decay;  // weight decay into the gradient, or 0
  float shrink;          // 1 - lr * weight decay where it is decoupled, or 1

  template <class L, class Float = typename L::Float>
  DPCOMM_HD void step(Float g, Float& p, Float* state) const {
    g = g + L::broadcast(gradient_decay) * p;
    p = L::broadcast(shrink) * p;
    state[0] = L::broadcast(beta1) * state[0] + L::broadcast(one_minus_beta1) * g;
    state[1] = L::broadcast(beta2) * state[1] + L::broadcast(one_minus_beta2) * (g * g);
    const Float root = L::sqrt(state[1]) * L::broadcast(root_factor) + L::broadcast(epsilon);
    p = p - L::broadcast(step_size) * (state[0] / root);
  }
};

using UpdateRule = std::variant<SgdRule, MomentumRule, AdamRule>;

UpdateRule update_rule(const Optimizer& optimizer);  // UsageError as in update()

}  // namespace dpcomm
