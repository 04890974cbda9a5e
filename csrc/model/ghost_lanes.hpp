#pragma once

#include "model/ghost.hpp"
#include "model/panels_lanes.hpp"
#include "privacy/clip_factor.hpp"
#include "privacy/clip_rule.hpp"
#include "privacy/lanes.hpp"

namespace dpcomm {
namespace {

// sums [kPanel] = sum of squares over the rows of x [rows, kPanel].
inline void squares(const float* x, int rows, double* sums) {
  constexpr int kStep = Lanes::kCount / 2;
  for (int lane = 0; lane < kPanel; lane += 4 * kStep) {
    Lanes::Double sum[4] = {};
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        sum[k] = Lanes::add_square(sum[k], Lanes::load_double(x + row * kPanel + lane + k * kStep));
      }
    }
    std::memcpy(sums + lane, sum, sizeof sum);
  }
}

// x [rows, kPanel] *= factors [kPanel], with products that are no normal numbers as zero: small
// ones round by more, and a factor above 1 could make others infinite.
inline void scale(const float* factors, int rows, float* x) {
  for (int row = 0; row < rows; ++row) {
    for (int lane = 0; lane < kPanel; lane += Lanes::kCount) {
      const Lanes::Float product =
          Lanes::load(x + row * kPanel + lane) * Lanes::load(factors + lane);
      const Lanes::Word exponent = Lanes::bits(product) & 0x7f800000u;
      const auto abnormal = (exponent == 0) | (exponent == 0x7f800000u);
      Lanes::store(x + row * kPanel + lane, abnormal ? Lanes::Float{} : product);
    }
  }
}

// What a sample that is not finite would add.
inline void clear_sample(const Chunk& chunk, const Panel& panel, int i) {
  for (const LinearLayer& layer : chunk.layers) {
    float* const deltas = deltas_of(layer, panel.index);
    for (int row = 0; row < layer.outputs; ++row) deltas[row * kPanel + i] = 0;
    for (int block = 0; block < blocks_of(layer.inputs); ++block) {
      std::memset(features_of(chunk, layer, block, panel.index) + i * kPanel, 0,
                  kPanel * sizeof(float));
    }
  }
}

// Scales the panel's deltas so that the rule holds, given `squares` [layers][kPanel] of the norms
// of each layer's gradient, and clears the samples that are not finite; returns how many there are.
// `norms` [count], over all layers and before clipping, may be null.
inline int clip(const Chunk& chunk, const Panel& panel, const ClipRule& rule, const double* squares,
                double* norms) {
  double lengths[kPanel] = {};
  for (std::size_t l = 0; l < chunk.layers.size(); ++l) {
    for (int i = 0; i < kPanel; ++i) lengths[i] += squares[l * kPanel + i];
  }
  int nonfinite = 0;
  for (int i = 0; i < kPanel; ++i) {
    lengths[i] = __builtin_sqrt(lengths[i]);
    if (norms != nullptr && i < panel.count) norms[i] = lengths[i];
    if (__builtin_isfinite(lengths[i])) continue;
    nonfinite += i < panel.count;
    clear_sample(chunk, panel, i);
  }

  const std::size_t groups = rule.norms.size();
  const std::size_t together = groups == 1 ? chunk.layers.size() : 1;  // layers that share a norm
  for (std::size_t k = 0; k < groups; ++k) {
    const auto layers = chunk.layers.subspan(k * together, together);
    std::size_t numbers = 0;
    std::size_t parameters = 0;
    for (const LinearLayer& layer : layers) {
      numbers += layer.inputs + layer.outputs + 2;
      parameters += (layer.inputs + std::size_t{1}) * layer.outputs;
    }
    const double error = exact_error(numbers);
    alignas(64) float factors[kPanel];
    bool changes = false;
    for (int i = 0; i < kPanel; ++i) {
      const double norm = groups == 1 ? lengths[i] : __builtin_sqrt(squares[k * kPanel + i]);
      factors[i] =
          __builtin_isfinite(lengths[i])
              ? clip_factor(norm, error, parameters, rule.norms[k], rule.stability, kGhostRounding)
              : 0;
      changes = changes || factors[i] != 1;
    }
    if (!changes) continue;
    for (const LinearLayer& layer : layers) {
      scale(factors, layer.outputs, deltas_of(layer, panel.index));
    }
  }
  return nonfinite;
}

}  // namespace
}  // namespace dpcomm
