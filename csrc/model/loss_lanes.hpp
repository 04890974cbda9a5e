#pragma once

#include <cmath>

#include "model/activation_lanes.hpp"
#include "model/mlp_lanes.hpp"

namespace dpcomm {
namespace {

// For outputs y [outputs, kPanel] and targets t of the same layout (cross entropy: [1, kPanel]):
// gradient = d loss / d y, and losses [kPanel] unless null. `gradient` may be y.
inline void binary_cross_entropy(int outputs, const float* y, const float* t, float* gradient,
                                 float* losses) {
  for (int i = 0; i < outputs * kPanel; i += Lanes::kCount) {
    const Float logit = Lanes::load(y + i);
    const Float target = Lanes::load(t + i);
    const Float e = exp_of_negative(-magnitude(logit));
    if (losses != nullptr) {
      // max(y, 0) - y t + log(1 + exp(-|y|)): no overflow.
      const Float positive = logit < 0.0f ? Lanes::broadcast(0) : logit;
      const Float loss = (positive - logit * target) + log1p_of_fraction(e);
      Lanes::store(losses + i % kPanel, Lanes::load(losses + i % kPanel) + loss);
    }
    Lanes::store(gradient + i, (logit < 0.0f ? e : Lanes::broadcast(1.0f)) / (1.0f + e) - target);
  }
}

inline void squared_error(int outputs, const float* y, const float* t, float* gradient,
                          float* losses) {
  for (int i = 0; i < outputs * kPanel; i += Lanes::kCount) {
    const Float error = Lanes::load(y + i) - Lanes::load(t + i);
    if (losses != nullptr) {
      Lanes::store(losses + i % kPanel, Lanes::fma(error, error, Lanes::load(losses + i % kPanel)));
    }
    Lanes::store(gradient + i, 2.0f * error);
  }
}

inline void cross_entropy(int outputs, const float* y, const float* t, float* gradient,
                          float* losses) {
  for (int lane = 0; lane < kPanel; lane += Lanes::kCount) {
    const Float target = Lanes::load(t + lane);
    Float most = Lanes::load(y + lane);
    for (int o = 1; o < outputs; ++o) most = greater(most, Lanes::load(y + o * kPanel + lane));
    Float sum = Lanes::broadcast(0), chosen = Lanes::broadcast(0);
    for (int o = 0; o < outputs; ++o) {
      const Float above = Lanes::load(y + o * kPanel + lane) - most;
      const Float e = exp_of_negative(above);
      chosen = target == static_cast<float>(o) ? above : chosen;
      sum += e;
      Lanes::store(gradient + o * kPanel + lane, e);
    }
    for (int o = 0; o < outputs; ++o) {
      const Float share = Lanes::load(gradient + o * kPanel + lane) / sum;
      Lanes::store(gradient + o * kPanel + lane,
                   target == static_cast<float>(o) ? share - 1.0f : share);
    }
    if (losses != nullptr) {
      for (int i = 0; i < Lanes::kCount; ++i) losses[lane + i] = std::log(sum[i]) - chosen[i];
    }
  }
}

inline void loss_gradient(Loss loss, int outputs, const float* y, const float* t, float* gradient,
                          float* losses) {
  switch (loss) {
    case Loss::kBinaryCrossEntropy:
      return binary_cross_entropy(outputs, y, t, gradient, losses);
    case Loss::kCrossEntropy:
      return cross_entropy(outputs, y, t, gradient, losses);
    case Loss::kSquaredError:
      return squared_error(outputs, y, t, gradient, losses);
  }
}

}  // namespace
}  // namespace dpcomm
