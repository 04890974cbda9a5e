#pragma once

#include <cstddef>

#include "model/mlp.hpp"

namespace dpcomm {

// Samples in one panel: [features][kPanel], so that one vector holds one feature of several
// samples, and weights, biases and clip factors need no rearrangement.
inline constexpr int kPanel = 32;

// Samples whose contributions to a weight's gradient are added up before they join the total.
inline constexpr int kPiece = 256;

// A layer and where its numbers lie. `features` and `deltas` hold a chunk of samples between the
// two halves of a step.
struct LayerTask {
  int inputs;
  int outputs;
  Activation activation;
  std::size_t weight;  // offset in the parameters
  std::size_t bias;    // likewise
  bool has_bias;
  float* features;  // what enters: [inputs/32, rounded up][samples of the chunk][32]
  float* deltas;    // loss gradients of W x + b: [panels of the chunk][outputs][kPanel]
};

enum class Mode { kEvaluate, kGradient, kClipped };

struct StepTask {
  const LayerTask* layers;
  int layer_count;
  Loss loss;
  Mode mode;
  const float* parameters;
  std::size_t chunk;  // samples that `features` has place for
  ClipRule clip;
  float* total;
};

// One panel of samples, `count` of them real.
struct PanelTask {
  std::size_t index;  // of the panel in the chunk
  int count;
  const float* const* rows;
  const float* const* targets;
  int ahead;       // rows after these that the same thread will want soon
  float* scratch;  // of one thread: all layers' inputs, four times the widest layer (see mlp.cpp)
  float* outputs;  // [count, outputs], losses [count] and norms [count]; each may be null
  float* losses;
  double* norms;
};

// One tile of a weight's gradient: rows `row` to row + kTileRows, features block `block`.
struct TileTask {
  int layer;
  int row;
  int block;
  std::size_t panels;
  bool accumulate;
};

inline constexpr int kMostLayers = 64;

template <int kCount>
inline constexpr int kTileRows = kCount == 16 ? 12 : 6;

// Forward, loss, backward, norms and clipping of one panel; fills the layers' features and deltas.
// Returns the samples that were not finite.
template <int kCount>
int run_panel(const StepTask& step, const PanelTask& panel);

// Adds a chunk of samples to one tile of the total.
template <int kCount>
void add_tile(const StepTask& step, const TileTask& tile);

}  // namespace dpcomm
