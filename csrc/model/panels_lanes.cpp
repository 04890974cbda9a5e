// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "model/panels_lanes.hpp"

#include "model/gemm_lanes.hpp"

namespace dpcomm {
namespace {

constexpr int kCount = Lanes::kCount;

// Adds the sum over the samples of deltas [rows][samples] and features [samples][columns] to, or
// stores it in, total [rows][columns], rows `stride` apart.
template <int kRows, int kVectors>
void outer_products(const LinearLayer& layer, const float* features, int row, std::size_t panels,
                    int columns, bool accumulate, float* total) {
  constexpr std::size_t kPanels = kPiece / kPanel;
  for (std::size_t piece = 0; piece < panels; piece += kPanels) {
    const std::size_t end = piece + kPanels < panels ? piece + kPanels : panels;
    Sums<kRows, kVectors> tile{};
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
void add_bias(const LinearLayer& layer, int row, std::size_t panels, bool accumulate,
              float* total) {
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
void add_tile<kCount>(const Chunk& chunk, const Tile& tile, std::size_t panels, bool accumulate) {
  const LinearLayer& layer = chunk.layers[tile.layer];
  const float* block = features_of(chunk, layer, tile.block, 0);
  const int columns = smaller(layer.inputs - tile.block * kPanel, kPanel);
  float* total =
      layer.weight_sum + static_cast<std::size_t>(tile.row) * layer.inputs + tile.block * kPanel;
  with_rows<kTileRows<kCount>>(layer.outputs - tile.row, [&](auto constant) {
    constexpr int kRows = decltype(constant)::value;
    int column = 0;
    for (; column + kCount < columns; column += 2 * kCount) {
      outer_products<kRows, 2>(layer, block + column, tile.row, panels, columns - column,
                               accumulate, total + column);
    }
    if (column < columns) {
      outer_products<kRows, 1>(layer, block + column, tile.row, panels, columns - column,
                               accumulate, total + column);
    }
    if (tile.block == 0 && layer.has_bias) {
      for (int row = tile.row; row < tile.row + kRows; ++row) {
        add_bias(layer, row, panels, accumulate, layer.bias_sum + row);
      }
    }
  });
}

}  // namespace dpcomm
