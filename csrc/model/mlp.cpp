#include "model/mlp.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "model/mlp_lanes.hpp"
#include "model/panels.hpp"

namespace dpcomm {
namespace {

// No loops of one number at a time: the reference is a backward for each sample.
decltype(&run_panel<16>) loop_of(Isa isa) {
  return with_lanes(isa, [](auto lanes) { return &run_panel<lanes>; });
}

std::vector<LinearLayer> linear(const std::vector<Layer>& layers) {
  std::vector<LinearLayer> result;
  for (const Layer& layer : layers) {
    result.push_back({.inputs = layer.inputs, .outputs = layer.outputs, .has_bias = layer.bias});
  }
  return result;
}

void check(const std::vector<Layer>& layers, Loss loss, int threads) {
  DPCOMM_CHECK(!layers.empty() && layers.size() <= kMostLayers, UsageError, layers.size(),
               " layers: give 1 to ", kMostLayers);
  DPCOMM_CHECK(threads >= 1, UsageError, threads, " threads: give at least 1");
  for (std::size_t l = 0; l < layers.size(); ++l) {
    DPCOMM_CHECK(layers[l].inputs > 0 && layers[l].outputs > 0, UsageError, "layer ", l, " is ",
                 layers[l].inputs, " to ", layers[l].outputs, ": give positive sizes");
    DPCOMM_CHECK(l == 0 || layers[l].inputs == layers[l - 1].outputs, UsageError, "layer ", l,
                 " takes ", layers[l].inputs, " inputs, but layer ", l - 1, " gives ",
                 layers[l - 1].outputs);
  }
  DPCOMM_CHECK(loss != Loss::kCrossEntropy || layers.back().outputs > 1, UsageError,
               "cross entropy of one output is 0: give an output for each class, or take binary "
               "cross entropy");
}

// What run_panel needs of a thread's scratch.
std::size_t scratch_floats(const std::vector<Layer>& layers) {
  std::size_t inputs = 0;
  int widest = 0;
  for (const Layer& layer : layers) {
    inputs += blocks_of(layer.inputs);
    widest = std::max({widest, blocks_of(layer.inputs), blocks_of(layer.outputs)});
  }
  return (inputs + 4 * widest) * kPanel * kPanel;
}

}  // namespace

struct Mlp::Plan {
  Panels panels;
  decltype(&run_panel<16>) run_panel;
  Loss loss;
  std::vector<MlpLayer> layers;
  std::size_t parameters = 0;

  Plan(const std::vector<Layer>& chain, Loss loss_of_chain, int threads, Isa isa)
      : panels(linear(chain), scratch_floats(chain), threads, isa),
        run_panel(loop_of(isa)),
        loss(loss_of_chain) {
    for (const Layer& layer : chain) {
      layers.push_back({.activation = layer.activation});
      parameters += static_cast<std::size_t>(layer.inputs) * layer.outputs;
      if (layer.bias) parameters += layer.outputs;
    }
  }

  // W and b of each layer in `values`, and where their gradients' sums go in `total`, if any.
  void place(const float* values, float* total) {
    std::size_t at = 0;
    const auto next = [&](auto* numbers) { return numbers == nullptr ? nullptr : numbers + at; };
    for (std::size_t l = 0; l < layers.size(); ++l) {
      LinearLayer& layer = panels.layers()[l];
      layers[l].weight = values + at;
      layer.weight_sum = next(total);
      at += static_cast<std::size_t>(layer.inputs) * layer.outputs;
      if (!layer.has_bias) continue;
      layers[l].bias = values + at;
      layer.bias_sum = next(total);
      at += layer.outputs;
    }
  }

  std::size_t run(Mode mode, const Samples& samples, const ClipRule& rule, float* outputs,
                  float* losses, double* norms, bool accumulate, const Beside& beside) {
    const Panels::Fill fill = [&](Panels::Scratch& scratch, const Chunk& chunk,
                                  const Panel& panel) {
      const std::size_t at = panel.first;
      const auto ahead =
          std::min<std::size_t>(panels.threads() * kPanel, samples.count - at - panel.count);
      const auto behind = [at](auto* numbers, std::size_t of_one) {
        return numbers == nullptr ? nullptr : numbers + at * of_one;
      };
      return run_panel(
          {.chunk = chunk, .layers = layers.data(), .loss = loss, .mode = mode, .rule = rule},
          {.panel = panel,
           .rows = samples.rows + at,
           .targets = behind(samples.targets, 1),
           .ahead = static_cast<int>(ahead),
           .scratch = scratch.floats.get(),
           .squares = scratch.squares.data(),
           .outputs = behind(outputs, chunk.layers.back().outputs),
           .losses = behind(losses, 1),
           .norms = behind(norms, 1)});
    };
    return mode == Mode::kEvaluate ? panels.pass(samples.count, fill)
                                   : panels.sum(samples.count, accumulate, fill, beside);
  }
};

Mlp::Mlp(const std::vector<Layer>& layers, Loss loss, int threads, Isa isa) {
  check(layers, loss, threads);
  plan_ = std::make_unique<Plan>(layers, loss, threads, isa);
}

Mlp::Mlp(Mlp&&) noexcept = default;

Mlp::~Mlp() = default;

std::size_t Mlp::parameters() const { return plan_->parameters; }

std::size_t Mlp::clipped_sum(const float* parameters, const Samples& samples, const ClipRule& rule,
                             float* total, float* losses, double* norms, bool accumulate,
                             const Beside& beside) {
  dpcomm::check(rule, plan_->layers.size());
  plan_->place(parameters, total);
  return plan_->run(Mode::kClipped, samples, rule, nullptr, losses, norms, accumulate, beside);
}

void Mlp::gradient_sum(const float* parameters, const Samples& samples, float* total, float* losses,
                       bool accumulate, const Beside& beside) {
  plan_->place(parameters, total);
  plan_->run(Mode::kGradient, samples, {}, nullptr, losses, nullptr, accumulate, beside);
}

void Mlp::evaluate(const float* parameters, const Samples& samples, float* outputs, float* losses) {
  plan_->place(parameters, nullptr);
  plan_->run(Mode::kEvaluate, samples, {}, outputs, losses, nullptr, false, {});
}

}  // namespace dpcomm
