#include "model/ghost_clip.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "model/ghost.hpp"

namespace dpcomm {
namespace {

struct Loops {
  decltype(&square_of<16>) square;
  decltype(&scale_row<16>) scale;
  decltype(&clip_row<16>) clip;
};

template <int kCount>
Loops loops() {
  return {&square_of<kCount>, &scale_row<kCount>, &clip_row<kCount>};
}

Loops loops_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return loops<16>();
    case Isa::kAvx2:
      return loops<8>();
    default:
      return loops<4>();
  }
}

}  // namespace

std::size_t ghost_clip(std::span<const GhostLayer> layers, std::size_t samples, float scale,
                       double clip_norm, double* norms, float* factors, int threads, Isa isa) {
  DPCOMM_CHECK(clip_norm > 0 && std::isfinite(clip_norm), UsageError, "clip norm ", clip_norm,
               ": give a positive number");
  const Loops loop = loops_of(isa);
  double numbers = 0;
  double parameters = 0;
  for (const GhostLayer& layer : layers) {
    numbers += static_cast<double>(layer.input_count + layer.gradient_count + 2);
    parameters += static_cast<double>((layer.input_count + 1) * layer.gradient_count);
  }
  const auto clip_one = [&](std::size_t i) {
    double square = 0;
    for (const GhostLayer& layer : layers) {
      float* const clipped = layer.clipped + i * layer.gradient_count;
      loop.scale(layer.gradients + i * layer.gradient_stride, scale, layer.gradient_count, clipped);
      const double inputs = loop.square(layer.inputs + i * layer.input_stride, layer.input_count);
      square += loop.square(clipped, layer.gradient_count) * (inputs + (layer.has_bias ? 1 : 0));
    }
    norms[i] = std::sqrt(square);
    factors[i] =
        std::isfinite(norms[i]) ? ghost_factor(norms[i], numbers, parameters, clip_norm) : 0.0f;
    for (const GhostLayer& layer : layers) {
      float* const clipped = layer.clipped + i * layer.gradient_count;
      if (!std::isfinite(norms[i])) {
        std::fill_n(clipped, layer.gradient_count, 0.0f);
      } else if (factors[i] != 1) {
        loop.clip(factors[i], layer.gradient_count, clipped);
      }
    }
  };
  parallel(threads, [&](int thread) {
    const auto cut = [&](int t) { return samples * static_cast<std::size_t>(t) / threads; };
    for (std::size_t i = cut(thread); i < cut(thread + 1); ++i) clip_one(i);
  });
  return static_cast<std::size_t>(
      std::count_if(norms, norms + samples, [](double norm) { return !std::isfinite(norm); }));
}

}  // namespace dpcomm
