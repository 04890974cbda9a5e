#pragma once

#include <cstddef>
#include <span>

namespace dpcomm {

// Samples in one panel: [features][kPanel], so that one vector holds one feature of several
// samples, and weights, biases and clip factors need no rearrangement.
inline constexpr int kPanel = 32;

// Samples whose contributions to a weight's gradient are added up before they join the total.
inline constexpr int kPiece = 256;

// y = W x + b, and where the numbers of a chunk of samples lie until they are summed.
struct LinearLayer {
  int inputs;
  int outputs;
  bool has_bias;
  float* weight_sum = nullptr;  // [outputs, inputs]: of the gradients
  float* bias_sum = nullptr;    // [outputs]
  float* features = nullptr;    // x: [inputs/32, rounded up][samples of the chunk][32]
  float* deltas = nullptr;      // loss gradients of y: [panels of the chunk][outputs][kPanel]
};

struct Chunk {
  std::span<const LinearLayer> layers;
  std::size_t places;  // samples that `features` has place for
};

// One panel of samples, `count` of them real.
struct Panel {
  std::size_t index;  // in the chunk
  std::size_t first;  // its first sample in the batch
  int count;
};

// Static: no width's code may stand in for another's.
static inline int smaller(int a, int b) { return a < b ? a : b; }

static inline int blocks_of(int features) { return (features + kPanel - 1) / kPanel; }

static inline float* features_of(const Chunk& chunk, const LinearLayer& layer, int block,
                                 std::size_t panel) {
  return layer.features + (block * chunk.places + panel * kPanel) * kPanel;
}

static inline float* deltas_of(const LinearLayer& layer, std::size_t panel) {
  return layer.deltas + panel * layer.outputs * kPanel;
}

// One tile of a weight's gradient: rows `row` to row + kTileRows, features block `block`.
struct Tile {
  int layer;
  int row;
  int block;
};

template <int kCount>
inline constexpr int kTileRows = kCount == 16 ? 12 : 6;

// Adds the chunk's panels to one tile of the total, or begins it with them.
template <int kCount>
void add_tile(const Chunk& chunk, const Tile& tile, std::size_t panels, bool accumulate);

}  // namespace dpcomm
