// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "model/mlp_lanes.hpp"

#include "model/activation_lanes.hpp"
#include "model/gemm_lanes.hpp"
#include "model/ghost_lanes.hpp"
#include "model/loss_lanes.hpp"

namespace dpcomm {
namespace {

constexpr int kCount = Lanes::kCount;

int blocks_of(int features) { return (features + kPanel - 1) / kPanel; }

int smaller(int a, int b) { return a < b ? a : b; }

// The numbers of one panel, in the thread's scratch.
struct Scratch {
  float* next;

  float* take(int features) {
    float* taken = next;
    next += static_cast<std::size_t>(blocks_of(features)) * kPanel * kPanel;
    return taken;
  }
};

float* features_of(const LayerTask& layer, std::size_t chunk, int block, std::size_t panel) {
  return layer.features + (block * chunk + panel * kPanel) * kPanel;
}

float* deltas_of(const LayerTask& layer, std::size_t panel) {
  return layer.deltas + panel * layer.outputs * kPanel;
}

// Rows to the features of the first layer, [sample][feature], and to `inputs`, [feature][sample].
void gather(const StepTask& step, const PanelTask& panel, float* inputs) {
  const LayerTask& first = step.layers[0];
  for (int i = panel.count; i < panel.count + panel.ahead; ++i) {
    for (int f = 0; f < first.inputs; f += 16) __builtin_prefetch(panel.rows[i] + f);
  }
  for (int block = 0; block < blocks_of(first.inputs); ++block) {
    const int width = smaller(first.inputs - block * kPanel, kPanel);
    float* samples = features_of(first, step.chunk, block, panel.index);
    for (int i = 0; i < panel.count; ++i) {
      std::memcpy(samples + i * kPanel, panel.rows[i] + block * kPanel, width * sizeof(float));
    }
    std::memset(samples + panel.count * kPanel, 0, (kPanel - panel.count) * kPanel * sizeof(float));
    transpose(samples, kPanel, width, inputs + block * kPanel * kPanel);
  }
}

// targets [count][width] to [width][kPanel]; zeros behind the last sample.
void gather_targets(const PanelTask& panel, int width, float* targets) {
  for (int o = 0; o < width; ++o) {
    for (int i = 0; i < kPanel; ++i) {
      targets[o * kPanel + i] = i < panel.count ? panel.targets[i][o] : 0;
    }
  }
}

void clear_column(int column, int rows, float* x) {
  for (int row = 0; row < rows; ++row) x[row * kPanel + column] = 0;
}

// What a sample that is not finite would add.
void clear_sample(const StepTask& step, const PanelTask& panel, int i, float* const* inputs) {
  for (int l = 0; l < step.layer_count; ++l) {
    const LayerTask& layer = step.layers[l];
    clear_column(i, layer.outputs, deltas_of(layer, panel.index));
    clear_column(i, layer.inputs, inputs[l]);
    for (int block = 0; l == 0 && block < blocks_of(layer.inputs); ++block) {
      std::memset(features_of(layer, step.chunk, block, panel.index) + i * kPanel, 0,
                  kPanel * sizeof(float));
    }
  }
}

// Norms of the panel's samples; scales the deltas, clears what is not finite.
int clip(const StepTask& step, const PanelTask& panel, float* const* inputs) {
  const auto groups = static_cast<int>(step.clip.norms.size());
  const int together = groups == 1 ? step.layer_count : 1;  // layers that share a norm
  alignas(64) double group_squares[kMostLayers][kPanel];    // those of the first `groups`
  double norms[kPanel] = {};
  for (int k = 0; k < groups; ++k) {
    double* const sums = group_squares[k];
    std::memset(sums, 0, sizeof group_squares[k]);
    for (int l = k * together; l < (k + 1) * together; ++l) {
      const LayerTask& layer = step.layers[l];
      alignas(64) double delta_squares[kPanel];
      alignas(64) double input_squares[kPanel];
      squares(deltas_of(layer, panel.index), layer.outputs, delta_squares);
      squares(inputs[l], layer.inputs, input_squares);
      const double bias = layer.has_bias ? 1 : 0;
      for (int i = 0; i < kPanel; ++i) sums[i] += delta_squares[i] * (input_squares[i] + bias);
    }
    for (int i = 0; i < kPanel; ++i) norms[i] += sums[i];
  }

  int nonfinite = 0;
  for (int i = 0; i < kPanel; ++i) {
    norms[i] = __builtin_sqrt(norms[i]);
    if (panel.norms != nullptr && i < panel.count) panel.norms[i] = norms[i];
    if (__builtin_isfinite(norms[i])) continue;
    nonfinite += i < panel.count;
    clear_sample(step, panel, i, inputs);
  }

  for (int k = 0; k < groups; ++k) {
    double numbers = 0;
    double parameters = 0;
    for (int l = k * together; l < (k + 1) * together; ++l) {
      numbers += step.layers[l].inputs + step.layers[l].outputs + 2;
      parameters += static_cast<double>(step.layers[l].inputs + 1) * step.layers[l].outputs;
    }
    alignas(64) float factors[kPanel];
    bool changes = false;
    for (int i = 0; i < kPanel; ++i) {
      const double norm = __builtin_sqrt(group_squares[k][i]);
      factors[i] =
          __builtin_isfinite(norms[i])
              ? ghost_factor(norm, numbers, parameters, step.clip.norms[k], step.clip.stability)
              : 0;
      changes = changes || factors[i] != 1;
    }
    if (!changes) continue;
    for (int l = k * together; l < (k + 1) * together; ++l) {
      scale(factors, step.layers[l].outputs, deltas_of(step.layers[l], panel.index));
    }
  }
  return nonfinite;
}

}  // namespace

template <>
int run_panel<kCount>(const StepTask& step, const PanelTask& panel) {
  const LayerTask* layers = step.layers;
  const int last = step.layer_count - 1;
  Scratch scratch{panel.scratch};
  float* inputs[kMostLayers + 1];  // of each layer; behind the last one, its activated outputs
  for (int l = 0; l <= last; ++l) inputs[l] = scratch.take(layers[l].inputs);
  inputs[last + 1] = scratch.take(layers[last].outputs);

  gather(step, panel, inputs[0]);
  for (int l = 0; l <= last; ++l) {
    const LayerTask& layer = layers[l];
    float* z = deltas_of(layer, panel.index);
    const auto width = static_cast<std::size_t>(layer.inputs);
    panel_product(layer.outputs, layer.inputs, {step.parameters + layer.weight, width, 1},
                  inputs[l], layer.has_bias ? step.parameters + layer.bias : nullptr, z);
    activate(layer.activation, z, layer.outputs * kPanel, inputs[l + 1]);
  }

  const int outputs = layers[last].outputs;
  const float* y = inputs[last + 1];
  if (panel.outputs != nullptr) {
    for (int i = 0; i < panel.count; ++i) {
      for (int o = 0; o < outputs; ++o) panel.outputs[i * outputs + o] = y[o * kPanel + i];
    }
  }
  if (step.mode == Mode::kEvaluate && panel.losses == nullptr) return 0;

  float* targets = scratch.take(outputs);
  float* gradient = scratch.take(outputs);
  alignas(64) float losses[kPanel] = {};
  gather_targets(panel, step.loss == Loss::kCrossEntropy ? 1 : outputs, targets);
  loss_gradient(step.loss, outputs, y, targets, gradient, panel.losses ? losses : nullptr);
  if (panel.losses != nullptr) {
    std::memcpy(panel.losses, losses, panel.count * sizeof(float));
  }
  if (step.mode == Mode::kEvaluate) return 0;

  for (int i = panel.count; i < kPanel; ++i) clear_column(i, outputs, gradient);
  activate_backward(layers[last].activation, y, gradient, outputs * kPanel,
                    deltas_of(layers[last], panel.index));
  for (int l = last; l > 0; --l) {
    const LayerTask& layer = layers[l];
    float* input_gradient = scratch.next;  // the last one taken, again for each layer
    const auto width = static_cast<std::size_t>(layer.inputs);
    panel_product(layer.inputs, layer.outputs, {step.parameters + layer.weight, 1, width},
                  deltas_of(layer, panel.index), nullptr, input_gradient);
    activate_backward(layers[l - 1].activation, inputs[l], input_gradient, layer.inputs * kPanel,
                      deltas_of(layers[l - 1], panel.index));
  }

  const int nonfinite = step.mode == Mode::kClipped ? clip(step, panel, inputs) : 0;
  for (int l = 1; l <= last; ++l) {
    for (int block = 0; block < blocks_of(layers[l].inputs); ++block) {
      const int width = smaller(layers[l].inputs - block * kPanel, kPanel);
      transpose(inputs[l] + block * kPanel * kPanel, width, kPanel,
                features_of(layers[l], step.chunk, block, panel.index));
    }
  }
  return nonfinite;
}

namespace {

// Adds the sum over the samples of deltas [rows][samples] and features [samples][columns] to, or
// stores it in, total [rows][columns], rows `stride` apart.
template <int kRows, int kVectors>
void outer_products(const LayerTask& layer, const float* features, int row, std::size_t panels,
                    int columns, bool accumulate, float* total) {
  constexpr std::size_t kPanels = kPiece / kPanel;
  for (std::size_t piece = 0; piece < panels; piece += kPanels) {
    const std::size_t end = piece + kPanels < panels ? piece + kPanels : panels;
    Tile<kRows, kVectors> tile{};
    for (std::size_t p = piece; p < end; ++p) {
      tile.multiply_add(kPanel, {deltas_of(layer, p) + row * kPanel, kPanel, 1},
                        features + p * kPanel * kPanel, kPanel);
    }
    for (int r = 0; r < kRows; ++r) {
      float* to = total + static_cast<std::size_t>(r) * layer.inputs;
      if (columns < kVectors * kCount) {
        float sums[kVectors * kCount];
        std::memcpy(sums, tile.sums[r], sizeof sums);
        for (int c = 0; c < columns; ++c) to[c] = accumulate ? to[c] + sums[c] : sums[c];
        continue;
      }
      for (int v = 0; v < kVectors; ++v, to += kCount) {
        const Lanes::Float sum = tile.sums[r][v];
        Lanes::store(to, accumulate ? Lanes::load(to) + sum : sum);
      }
    }
    accumulate = true;
  }
}

// The same with features that are all 1: lane by lane, then the lanes in pairs.
void add_bias(const LayerTask& layer, int row, std::size_t panels, bool accumulate, float* total) {
  float lanes[kPanel] = {};
  for (std::size_t p = 0; p < panels; ++p) {
    const float* delta = deltas_of(layer, p) + row * kPanel;
    for (int i = 0; i < kPanel; ++i) lanes[i] += delta[i];
  }
  for (int width = kPanel / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  *total = accumulate ? *total + lanes[0] : lanes[0];
}

}  // namespace

template <>
void add_tile<kCount>(const StepTask& step, const TileTask& task) {
  const LayerTask& layer = step.layers[task.layer];
  const float* block = features_of(layer, step.chunk, task.block, 0);
  const int columns = smaller(layer.inputs - task.block * kPanel, kPanel);
  float* total = step.total + layer.weight + static_cast<std::size_t>(task.row) * layer.inputs +
                 task.block * kPanel;
  with_rows<kTileRows<kCount>>(layer.outputs - task.row, [&](auto constant) {
    constexpr int kRows = decltype(constant)::value;
    int column = 0;
    for (; column + kCount < columns; column += 2 * kCount) {
      outer_products<kRows, 2>(layer, block + column, task.row, task.panels, columns - column,
                               task.accumulate, total + column);
    }
    if (column < columns) {
      outer_products<kRows, 1>(layer, block + column, task.row, task.panels, columns - column,
                               task.accumulate, total + column);
    }
    if (task.block == 0 && layer.has_bias) {
      for (int row = task.row; row < task.row + kRows; ++row) {
        add_bias(layer, row, task.panels, task.accumulate, step.total + layer.bias + row);
      }
    }
  });
}

}  // namespace dpcomm
