// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "model/ghost_sum_lanes.hpp"

#include "model/gemm_lanes.hpp"
#include "model/ghost_lanes.hpp"

namespace dpcomm {
namespace {

constexpr int kCount = Lanes::kCount;

// Rows of inputs to the layer's features, [sample][feature] block by block.
void pack_features(const Chunk& chunk, const LinearLayer& layer, const GhostUse& use,
                   const Panel& panel) {
  for (int i = 0; i < kPanel; ++i) {
    const float* const row = use.inputs + (panel.first + i) * use.input_stride;
    for (int block = 0; block < blocks_of(layer.inputs); ++block) {
      float* const to = features_of(chunk, layer, block, panel.index) + i * kPanel;
      const int width = smaller(layer.inputs - block * kPanel, kPanel);
      if (i < panel.count) {
        std::memcpy(to, row + block * kPanel, width * sizeof(float));
      } else {
        std::memset(to, 0, width * sizeof(float));
      }
    }
  }
}

// sums [kPanel] = of each sample's packed features, in eight partial sums whatever the width of the
// vectors. Behind the last feature of the last block there are zeros.
void feature_squares(const Chunk& chunk, const LinearLayer& layer, const Panel& panel,
                     double* sums) {
  constexpr int kStep = kCount / 2;
  constexpr int kVectors = 8 / kStep;
  for (int i = 0; i < kPanel; ++i) {
    Lanes::Double vectors[kVectors] = {};
    for (int block = 0; block < blocks_of(layer.inputs); ++block) {
      const float* const from = features_of(chunk, layer, block, panel.index) + i * kPanel;
#pragma GCC unroll 16
      for (int k = 0; k < kPanel / kStep; ++k) {
        Lanes::Double& sum = vectors[k % kVectors];
        sum = Lanes::add_square(sum, Lanes::load_double(from + k * kStep));
      }
    }
    double s[8];
    std::memcpy(s, vectors, sizeof s);
    sums[i] = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  }
}

// scale * rows of gradients to the layer's deltas, [output][sample].
void pack_deltas(const LinearLayer& layer, const GhostUse& use, float scale, const Panel& panel,
                 float* scratch) {
  constexpr int kBlock = kPanel * kPanel;
  for (int i = 0; i < kPanel; ++i) {
    const float* const row = use.gradients + (panel.first + i) * use.gradient_stride;
    for (int block = 0; block < blocks_of(layer.outputs); ++block) {
      float* const to = scratch + block * kBlock + i * kPanel;
      const int width = smaller(layer.outputs - block * kPanel, kPanel);
      for (int k = 0; k < width; ++k) to[k] = i < panel.count ? scale * row[block * kPanel + k] : 0;
    }
  }
  float* const deltas = deltas_of(layer, panel.index);
  float* const last = scratch + blocks_of(layer.outputs) * kBlock;
  for (int block = 0; block < blocks_of(layer.outputs); ++block) {
    const int width = smaller(layer.outputs - block * kPanel, kPanel);
    float* const to = deltas + block * kBlock;
    transpose(scratch + block * kBlock, kPanel, width, width == kPanel ? to : last);
    if (width < kPanel) std::memcpy(to, last, width * kPanel * sizeof(float));
  }
}

}  // namespace

template <>
int clip_panel<kCount>(const GhostTask& task, const Panel& panel) {
  double* norm_squares = task.squares;
  const GhostUse* use = task.uses;
  for (const LinearLayer& layer : task.chunk.layers) {
    alignas(64) double of_inputs[kPanel];
    alignas(64) double of_deltas[kPanel];
    pack_features(task.chunk, layer, *use, panel);
    feature_squares(task.chunk, layer, panel, of_inputs);
    pack_deltas(layer, *use, task.scale, panel, task.scratch);
    squares(deltas_of(layer, panel.index), layer.outputs, of_deltas);
    const double bias = layer.has_bias ? 1 : 0;
    for (int i = 0; i < kPanel; ++i) *norm_squares++ = of_deltas[i] * (of_inputs[i] + bias);
    ++use;
  }
  return clip(task.chunk, panel, task.rule, task.squares, task.norms + panel.first);
}

}  // namespace dpcomm
