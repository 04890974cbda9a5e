#pragma once

#include "model/ghost_sum.hpp"
#include "model/panels_lanes.hpp"

namespace dpcomm {

struct GhostTask {
  Chunk chunk;
  const GhostUse* uses;  // of each layer
  float scale;
  ClipRule rule;
  float* scratch;   // of one thread: the widest layer's outputs in whole panels, and one more
  double* squares;  // likewise: [layers][kPanel]
  double* norms;    // [samples]
};

// Norms and clipping of one panel; fills the layers' features and deltas. Returns the samples that
// were not finite.
template <int kCount>
int clip_panel(const GhostTask& task, const Panel& panel);

}  // namespace dpcomm
