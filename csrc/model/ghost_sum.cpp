#include "model/ghost_sum.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "model/aligned.hpp"
#include "model/ghost_sum_lanes.hpp"
#include "model/panels.hpp"

namespace dpcomm {
namespace {

decltype(&clip_panel<16>) loop_of(Isa isa) {
  return with_lanes(isa, [](auto lanes) { return &clip_panel<lanes>; });
}

std::vector<LinearLayer> layers_of(const std::vector<LinearShape>& shapes) {
  std::vector<LinearLayer> layers;
  for (const auto& [inputs, outputs, has_bias] : shapes) {
    DPCOMM_CHECK(inputs > 0 && outputs > 0, UsageError, "a layer of ", inputs, " inputs and ",
                 outputs, " outputs: give positive sizes");
    layers.push_back({.inputs = inputs, .outputs = outputs, .has_bias = has_bias});
  }
  return layers;
}

}  // namespace

struct GhostSum::Plan {
  struct Scratch {
    AlignedFloats floats;
    std::vector<double> squares;
    std::size_t nonfinite = 0;
  };

  Panels panels;
  decltype(&clip_panel<16>) clip_panel;
  std::vector<Scratch> scratches;  // of each thread

  Plan(const std::vector<LinearShape>& shapes, int threads, Isa isa)
      : panels(layers_of(shapes), threads, isa), clip_panel(loop_of(isa)), scratches(threads) {
    int widest = 0;
    for (const LinearShape& shape : shapes) widest = std::max(widest, blocks_of(shape.outputs));
    for (Scratch& scratch : scratches) {
      scratch.floats = aligned_zeros(static_cast<std::size_t>(widest + 1) * kPanel * kPanel);
      scratch.squares.resize(shapes.size() * kPanel);
    }
  }
};

GhostSum::GhostSum(const std::vector<LinearShape>& layers, int threads, Isa isa) {
  DPCOMM_CHECK(threads >= 1, UsageError, threads, " threads: give at least 1");
  plan_ = std::make_unique<Plan>(layers, threads, isa);
}

GhostSum::GhostSum(GhostSum&&) noexcept = default;

GhostSum::~GhostSum() = default;

std::size_t GhostSum::add(std::span<const LinearUse> uses, std::size_t samples, float scale,
                          const ClipRule& rule, double* norms, bool accumulate) {
  Plan& plan = *plan_;
  const std::span<LinearLayer> layers = plan.panels.layers();
  DPCOMM_CHECK(uses.size() == layers.size(), UsageError, uses.size(), " uses of ", layers.size(),
               " layers: give one of each");
  check(rule, layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    layers[l].weight_sum = uses[l].weight_sum;
    layers[l].bias_sum = uses[l].bias_sum;
  }
  for (Plan::Scratch& scratch : plan.scratches) scratch.nonfinite = 0;
  plan.panels.sum(samples, accumulate, [&](int thread, const Chunk& chunk, const Panel& panel) {
    Plan::Scratch& scratch = plan.scratches[thread];
    scratch.nonfinite += plan.clip_panel({.chunk = chunk,
                                          .uses = uses.data(),
                                          .scale = scale,
                                          .rule = rule,
                                          .scratch = scratch.floats.get(),
                                          .squares = scratch.squares.data(),
                                          .norms = norms},
                                         panel);
  });
  std::size_t nonfinite = 0;
  for (const Plan::Scratch& scratch : plan.scratches) nonfinite += scratch.nonfinite;
  return nonfinite;
}

}  // namespace dpcomm
