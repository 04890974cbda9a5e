#include "model/ghost_sum.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "model/ghost_sum_lanes.hpp"
#include "model/panels.hpp"

namespace dpcomm {
namespace {

decltype(&clip_panel<16>) loop_of(Isa isa) {
  return with_lanes(isa, [](auto lanes) { return &clip_panel<lanes>; });
}

std::vector<LinearLayer> linear(const std::vector<GhostLayer>& layers) {
  std::vector<LinearLayer> result;
  for (const GhostLayer& layer : layers) {
    DPCOMM_CHECK(layer.inputs > 0 && layer.outputs > 0, UsageError, "a layer of ", layer.inputs,
                 " inputs and ", layer.outputs, " outputs: give positive sizes");
    result.push_back({.inputs = layer.inputs,
                      .outputs = layer.outputs,
                      .has_bias = layer.bias_sum != nullptr,
                      .weight_sum = layer.weight_sum,
                      .bias_sum = layer.bias_sum});
  }
  return result;
}

}  // namespace

struct GhostSum::Plan {
  Panels panels;
  decltype(&clip_panel<16>) clip_panel;
};

GhostSum::GhostSum(const std::vector<GhostLayer>& layers, int threads, Isa isa) {
  DPCOMM_CHECK(threads >= 1, UsageError, threads, " threads: give at least 1");
  DPCOMM_CHECK(!layers.empty(), UsageError, "no layers: give at least one");
  int widest = 0;
  for (const GhostLayer& layer : layers) widest = std::max(widest, blocks_of(layer.outputs));
  const std::size_t floats = static_cast<std::size_t>(widest + 1) * kPanel * kPanel;
  plan_ = std::make_unique<Plan>(Panels(linear(layers), floats, threads, isa), loop_of(isa));
}

GhostSum::GhostSum(GhostSum&&) noexcept = default;

GhostSum::~GhostSum() = default;

std::size_t GhostSum::add(std::span<const GhostUse> uses, std::size_t samples, float scale,
                          const ClipRule& rule, double* norms, bool accumulate) {
  Plan& plan = *plan_;
  const std::size_t layers = plan.panels.layers().size();
  DPCOMM_CHECK(uses.size() == layers, UsageError, uses.size(), " uses of ", layers,
               " layers: give one of each");
  check(rule, layers);
  const auto fill = [&](Panels::Scratch& scratch, const Chunk& chunk, const Panel& panel) {
    return plan.clip_panel({.chunk = chunk,
                            .uses = uses.data(),
                            .scale = scale,
                            .rule = rule,
                            .scratch = scratch.floats.get(),
                            .squares = scratch.squares.data(),
                            .norms = norms},
                           panel);
  };
  return plan.panels.sum(samples, accumulate, fill);
}

}  // namespace dpcomm
