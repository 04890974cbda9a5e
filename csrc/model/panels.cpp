#include "model/panels.hpp"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/parallel.hpp"

namespace dpcomm {
namespace {

// A chunk's features and deltas should stay in the cores' caches between the two halves of a step.
constexpr std::size_t kChunkBytes = 1 << 20;
constexpr std::size_t kChunkMost = 4096;

std::size_t padded(int features) { return static_cast<std::size_t>(blocks_of(features)) * kPanel; }

// Work 0 … count-1 by whichever thread is free: the results do not depend on who does what.
template <class F>
void share(int threads, std::size_t count, const F& work) {
  std::atomic<std::size_t> next{0};
  parallel(static_cast<int>(std::min<std::size_t>(threads, count)), [&](int thread) {
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      work(thread, i);
    }
  });
}

}  // namespace

Panels::Panels(std::vector<LinearLayer> layers, std::size_t floats, int threads, Isa isa)
    : layers_(std::move(layers)), scratches_(threads) {
  for (Scratch& scratch : scratches_) {
    scratch.floats = aligned_zeros(floats);
    scratch.squares.resize(layers_.size() * kPanel);
  }
  int tile_rows = 0;
  with_lanes(isa, [&](auto lanes) {
    add_tile_ = &add_tile<lanes>;
    tile_rows = kTileRows<lanes>;
  });
  std::size_t sample = 0;
  // A block of features stays in the first cache while all rows pass.
  for (int l = 0; l < static_cast<int>(layers_.size()); ++l) {
    sample += padded(layers_[l].inputs) + layers_[l].outputs;
    for (int block = 0; block < blocks_of(layers_[l].inputs); ++block) {
      for (int row = 0; row < layers_[l].outputs; row += tile_rows) {
        tiles_.push_back({.layer = l, .row = row, .block = block});
      }
    }
  }
  chunk_ = std::clamp<std::size_t>(kChunkBytes / (sample * sizeof(float)) / kPiece * kPiece, kPiece,
                                   kChunkMost);
}

void Panels::reserve(std::size_t samples) {
  samples = std::min((samples + kPanel - 1) / kPanel * kPanel, chunk_);
  if (samples <= places_) return;
  places_ = std::min(std::max(samples, 2 * places_), chunk_);
  buffers_.clear();
  for (LinearLayer& layer : layers_) {
    layer.features = buffers_.emplace_back(aligned_zeros(padded(layer.inputs) * places_)).get();
    layer.deltas = buffers_.emplace_back(aligned_zeros(layer.outputs * places_)).get();
  }
}

std::size_t Panels::sum(std::size_t samples, bool accumulate, const Fill& fill,
                        const Beside& beside) {
  if (samples == 0 && !accumulate) {
    for (const LinearLayer& layer : layers_) {
      std::fill_n(layer.weight_sum, static_cast<std::size_t>(layer.inputs) * layer.outputs, 0.0f);
      if (layer.has_bias) std::fill_n(layer.bias_sum, layer.outputs, 0.0f);
    }
  }
  return run(samples, fill, beside, true, accumulate);
}

std::size_t Panels::pass(std::size_t samples, const Fill& fill) {
  return run(samples, fill, {}, false, false);
}

std::size_t Panels::run(std::size_t samples, const Fill& fill, const Beside& beside, bool sums,
                        bool accumulate) {
  reserve(samples);
  const Chunk chunk{layers_, places_};
  std::atomic<std::size_t> nonfinite{0};
  std::size_t others = beside.count;
  if (samples == 0) share(threads(), others, [&](int, std::size_t i) { beside.work(i); });
  for (std::size_t first = 0; first < samples; first += chunk_) {
    const std::size_t count = std::min(chunk_, samples - first);
    const std::size_t panels = (count + kPanel - 1) / kPanel;
    share(threads(), others + panels, [&](int thread, std::size_t i) {
      if (i < others) return beside.work(i);
      const std::size_t at = (i - others) * kPanel;
      const Panel panel{.index = i - others,
                        .first = first + at,
                        .count = static_cast<int>(std::min<std::size_t>(kPanel, count - at))};
      if (const int some = fill(scratches_[thread], chunk, panel)) nonfinite.fetch_add(some);
    });
    others = 0;
    if (!sums) continue;
    share(threads(), tiles_.size(), [&](int, std::size_t t) {
      add_tile_(chunk, tiles_[t], panels, accumulate || first > 0);
    });
  }
  return nonfinite;
}

}  // namespace dpcomm
