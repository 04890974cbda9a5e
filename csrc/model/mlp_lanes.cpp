// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "model/mlp_lanes.hpp"

#include "model/activation_lanes.hpp"
#include "model/gemm_lanes.hpp"
#include "model/ghost_lanes.hpp"
#include "model/loss_lanes.hpp"

namespace dpcomm {
namespace {

constexpr int kCount = Lanes::kCount;

// The numbers of one panel, in the thread's scratch.
struct Scratch {
  float* next;

  float* take(int features) {
    float* taken = next;
    next += static_cast<std::size_t>(blocks_of(features)) * kPanel * kPanel;
    return taken;
  }
};

// Rows to the features of the first layer, [sample][feature], and to `inputs`, [feature][sample].
void gather(const Chunk& chunk, const MlpPanel& task, float* inputs) {
  const LinearLayer& first = chunk.layers[0];
  const Panel& panel = task.panel;
  for (int i = panel.count; i < panel.count + task.ahead; ++i) {
    for (int f = 0; f < first.inputs; f += 16) __builtin_prefetch(task.rows[i] + f);
  }
  for (int block = 0; block < blocks_of(first.inputs); ++block) {
    const int width = smaller(first.inputs - block * kPanel, kPanel);
    float* samples = features_of(chunk, first, block, panel.index);
    for (int i = 0; i < panel.count; ++i) {
      std::memcpy(samples + i * kPanel, task.rows[i] + block * kPanel, width * sizeof(float));
    }
    std::memset(samples + panel.count * kPanel, 0, (kPanel - panel.count) * kPanel * sizeof(float));
    transpose(samples, kPanel, width, inputs + block * kPanel * kPanel);
  }
}

// targets [count][width] to [width][kPanel]; zeros behind the last sample.
void gather_targets(const MlpPanel& task, int width, float* targets) {
  for (int o = 0; o < width; ++o) {
    for (int i = 0; i < kPanel; ++i) {
      targets[o * kPanel + i] = i < task.panel.count ? task.targets[i][o] : 0;
    }
  }
}

void clear_column(int column, int rows, float* x) {
  for (int row = 0; row < rows; ++row) x[row * kPanel + column] = 0;
}

// Of the gradient of each layer, from the panel's deltas and inputs.
void norm_squares(const Chunk& chunk, const Panel& panel, float* const* inputs, double* norms) {
  for (const LinearLayer& layer : chunk.layers) {
    alignas(64) double of_deltas[kPanel];
    alignas(64) double of_inputs[kPanel];
    squares(deltas_of(layer, panel.index), layer.outputs, of_deltas);
    squares(*inputs++, layer.inputs, of_inputs);
    const double bias = layer.has_bias ? 1 : 0;
    for (int i = 0; i < kPanel; ++i) *norms++ = of_deltas[i] * (of_inputs[i] + bias);
  }
}

}  // namespace

template <>
int run_panel<kCount>(const MlpTask& task, const MlpPanel& at) {
  const std::span<const LinearLayer> layers = task.chunk.layers;
  const Panel& panel = at.panel;
  const int last = static_cast<int>(layers.size()) - 1;
  Scratch scratch{at.scratch};
  float* inputs[kMostLayers + 1];  // of each layer; behind the last one, its activated outputs
  for (int l = 0; l <= last; ++l) inputs[l] = scratch.take(layers[l].inputs);
  inputs[last + 1] = scratch.take(layers[last].outputs);

  gather(task.chunk, at, inputs[0]);
  for (int l = 0; l <= last; ++l) {
    const LinearLayer& layer = layers[l];
    float* z = deltas_of(layer, panel.index);
    const auto width = static_cast<std::size_t>(layer.inputs);
    panel_product(layer.outputs, layer.inputs, {task.layers[l].weight, width, 1}, inputs[l],
                  task.layers[l].bias, z);
    activate(task.layers[l].activation, z, layer.outputs * kPanel, inputs[l + 1]);
  }

  const int outputs = layers[last].outputs;
  const float* y = inputs[last + 1];
  if (at.outputs != nullptr) {
    for (int i = 0; i < panel.count; ++i) {
      for (int o = 0; o < outputs; ++o) at.outputs[i * outputs + o] = y[o * kPanel + i];
    }
  }
  if (task.mode == Mode::kEvaluate && at.losses == nullptr) return 0;

  float* targets = scratch.take(outputs);
  float* gradient = scratch.take(outputs);
  alignas(64) float losses[kPanel] = {};
  gather_targets(at, task.loss == Loss::kCrossEntropy ? 1 : outputs, targets);
  loss_gradient(task.loss, outputs, y, targets, gradient, at.losses ? losses : nullptr);
  if (at.losses != nullptr) std::memcpy(at.losses, losses, panel.count * sizeof(float));
  if (task.mode == Mode::kEvaluate) return 0;

  for (int i = panel.count; i < kPanel; ++i) clear_column(i, outputs, gradient);
  activate_backward(task.layers[last].activation, y, gradient, outputs * kPanel,
                    deltas_of(layers[last], panel.index));
  for (int l = last; l > 0; --l) {
    const LinearLayer& layer = layers[l];
    float* input_gradient = scratch.next;  // the last one taken, again for each layer
    const auto width = static_cast<std::size_t>(layer.inputs);
    panel_product(layer.inputs, layer.outputs, {task.layers[l].weight, 1, width},
                  deltas_of(layer, panel.index), nullptr, input_gradient);
    activate_backward(task.layers[l - 1].activation, inputs[l], input_gradient,
                      layer.inputs * kPanel, deltas_of(layers[l - 1], panel.index));
  }

  for (int l = 1; l <= last; ++l) {
    for (int block = 0; block < blocks_of(layers[l].inputs); ++block) {
      const int width = smaller(layers[l].inputs - block * kPanel, kPanel);
      transpose(inputs[l] + block * kPanel * kPanel, width, kPanel,
                features_of(task.chunk, layers[l], block, panel.index));
    }
  }
  if (task.mode == Mode::kGradient) return 0;
  norm_squares(task.chunk, panel, inputs, at.squares);
  return clip(task.chunk, panel, task.rule, at.squares, at.norms);
}

}  // namespace dpcomm
