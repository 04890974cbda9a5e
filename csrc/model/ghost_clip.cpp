#include "model/ghost_clip.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.hpp"
#include "model/ghost.hpp"

namespace dpcomm {
namespace {

struct Loops {
  decltype(&square_of<16>) square;
  decltype(&scale_row<16>) scale;
  decltype(&clip_row<16>) clip;
};

Loops loops_of(Isa isa) {
  return with_lanes(isa, [](auto lanes) {
    return Loops{&square_of<lanes>, &scale_row<lanes>, &clip_row<lanes>};
  });
}

// Layers that are clipped together.
struct Group {
  std::span<const GhostLayer> layers;
  double clip_norm;
  double numbers = 0;  // that enter the norm
  double parameters = 0;

  Group(std::span<const GhostLayer> together, double norm) : layers(together), clip_norm(norm) {
    for (const GhostLayer& layer : layers) {
      numbers += static_cast<double>(layer.input_count + layer.gradient_count + 2);
      parameters += static_cast<double>((layer.input_count + 1) * layer.gradient_count);
    }
  }
};

std::vector<Group> groups_of(std::span<const GhostLayer> layers, const ClipRule& rule) {
  const std::size_t together = rule.norms.size() == 1 ? layers.size() : 1;
  std::vector<Group> groups;
  for (std::size_t k = 0; k < rule.norms.size(); ++k) {
    groups.emplace_back(layers.subspan(k * together, together), rule.norms[k]);
  }
  return groups;
}

}  // namespace

std::size_t ghost_clip(std::span<const GhostLayer> layers, std::size_t samples, float scale,
                       const ClipRule& rule, double* norms, int threads, Isa isa) {
  check(rule, layers.size());
  const Loops loop = loops_of(isa);
  const std::vector<Group> groups = groups_of(layers, rule);
  const auto clip_one = [&](std::size_t i, std::vector<double>& squares) {
    double whole = 0;
    for (std::size_t k = 0; k < groups.size(); ++k) {
      squares[k] = 0;
      for (const GhostLayer& layer : groups[k].layers) {
        float* const clipped = layer.clipped + i * layer.gradient_count;
        const float* const gradients = layer.gradients + i * layer.gradient_stride;
        loop.scale(gradients, scale, layer.gradient_count, clipped);
        const double inputs = loop.square(layer.inputs + i * layer.input_stride, layer.input_count);
        const double square = loop.square(clipped, layer.gradient_count);
        squares[k] += square * (inputs + (layer.has_bias ? 1 : 0));
      }
      whole += squares[k];
    }
    norms[i] = std::sqrt(whole);
    for (std::size_t k = 0; k < groups.size(); ++k) {
      const Group& group = groups[k];
      const float factor = std::isfinite(norms[i])
                               ? ghost_factor(std::sqrt(squares[k]), group.numbers,
                                              group.parameters, group.clip_norm, rule.stability)
                               : 0.0f;
      for (const GhostLayer& layer : group.layers) {
        float* const clipped = layer.clipped + i * layer.gradient_count;
        if (factor == 0) {
          std::fill_n(clipped, layer.gradient_count, 0.0f);
        } else if (factor != 1) {
          loop.clip(factor, layer.gradient_count, clipped);
        }
      }
    }
  };
  parallel(threads, [&](int thread) {
    std::vector<double> squares(groups.size());
    const auto cut = [&](int t) { return samples * static_cast<std::size_t>(t) / threads; };
    for (std::size_t i = cut(thread); i < cut(thread + 1); ++i) clip_one(i, squares);
  });
  return static_cast<std::size_t>(
      std::count_if(norms, norms + samples, [](double norm) { return !std::isfinite(norm); }));
}

}  // namespace dpcomm
