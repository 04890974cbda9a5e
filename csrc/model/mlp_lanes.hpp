#pragma once

#include <cstddef>

#include "model/mlp.hpp"
#include "model/panels_lanes.hpp"

namespace dpcomm {

enum class Mode { kEvaluate, kGradient, kClipped };

// What a layer does with its input, beside where the input lies (LinearLayer).
struct MlpLayer {
  Activation activation;
  const float* weight;
  const float* bias;  // null if there is none
};

struct MlpTask {
  Chunk chunk;
  const MlpLayer* layers;
  Loss loss;
  Mode mode;
  ClipRule rule;
};

// A panel's samples and what is told of them.
struct MlpPanel {
  Panel panel;
  const float* const* rows;
  const float* const* targets;
  int ahead;        // rows after these that the same thread will want soon
  float* scratch;   // of one thread: all layers' inputs, four times the widest layer (see mlp.cpp)
  double* squares;  // likewise: [layers][kPanel]
  float* outputs;   // [count, outputs], losses [count] and norms [count]; each may be null
  float* losses;
  double* norms;
};

inline constexpr int kMostLayers = 64;

// Forward, loss, backward, norms and clipping of one panel; fills the layers' features and deltas.
// Returns the samples that were not finite.
template <int kCount>
int run_panel(const MlpTask& task, const MlpPanel& panel);

}  // namespace dpcomm
