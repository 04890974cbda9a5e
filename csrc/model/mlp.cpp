#include "model/mlp.hpp"

#include <algorithm>
#include <atomic>
#include <new>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "model/mlp_lanes.hpp"

namespace dpcomm {
namespace {

// A chunk's features and deltas should stay in the cores' caches between the two halves of a step.
constexpr std::size_t kChunkBytes = 1 << 20;
constexpr std::size_t kChunkMost = 4096;

struct Loops {
  decltype(&run_panel<16>) panel;
  decltype(&add_tile<16>) tile;
  int tile_rows;
};

// No loops of one number at a time: the reference is a backward for each sample.
Loops loops_of(Isa isa) {
  return with_lanes(
      isa, [](auto lanes) { return Loops{&run_panel<lanes>, &add_tile<lanes>, kTileRows<lanes>}; });
}

std::size_t padded(int features) { return (features + kPanel - 1) / kPanel * kPanel; }

struct Aligned {
  void operator()(float* data) const { ::operator delete[](data, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<float[], Aligned>;

Buffer zeros(std::size_t count) {
  auto* data = static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t(64)));
  std::fill_n(data, count, 0.0f);
  return Buffer(data);
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

}  // namespace

struct Mlp::Plan {
  Loops loops;
  Loss loss;
  int threads;
  std::size_t parameters = 0;
  std::size_t chunk = 0;    // samples
  std::size_t scratch = 0;  // floats a thread
  std::vector<LayerTask> layers;
  std::vector<TileTask> tiles;
  std::vector<Buffer> features, deltas, scratches;
  std::size_t places = 0;  // samples that the buffers have place for

  void reserve(std::size_t samples) {
    samples = std::min((samples + kPanel - 1) / kPanel * kPanel, chunk);
    if (samples <= places) return;
    places = std::min(std::max(samples, 2 * places), chunk);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      features[l] = zeros(padded(layers[l].inputs) * places);
      deltas[l] = zeros(layers[l].outputs * places);
      layers[l].features = features[l].get();
      layers[l].deltas = deltas[l].get();
    }
  }

  // Work 0 … count-1 by whichever thread is free: the results do not depend on who does what.
  template <class F>
  void share(std::size_t count, const F& work) {
    const int some = static_cast<int>(std::min<std::size_t>(threads, count));
    std::atomic<std::size_t> next{0};
    parallel(some, [&](int thread) {
      for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        work(thread, i);
      }
    });
  }

  std::size_t run(StepTask step, const Samples& samples, float* outputs, float* losses,
                  double* norms, bool accumulate, const Beside& beside) {
    reserve(samples.count);
    step.layers = layers.data();
    step.layer_count = static_cast<int>(layers.size());
    step.loss = loss;
    step.chunk = places;
    if (step.total != nullptr && !accumulate && samples.count == 0) {
      std::fill_n(step.total, parameters, 0.0f);
    }
    std::atomic<std::size_t> nonfinite{0};
    std::size_t others = beside.count;
    if (samples.count == 0) share(others, [&](int, std::size_t i) { beside.work(i); });
    for (std::size_t first = 0; first < samples.count; first += chunk) {
      const std::size_t count = std::min(chunk, samples.count - first);
      const std::size_t panels = (count + kPanel - 1) / kPanel;
      share(others + panels, [&](int thread, std::size_t i) {
        if (i < others) return beside.work(i);
        const std::size_t p = i - others;
        const std::size_t at = first + p * kPanel;
        const auto within = [&](std::size_t from) {
          return static_cast<int>(std::min<std::size_t>(kPanel, samples.count - from));
        };
        PanelTask panel{.index = p,
                        .count = within(at),
                        .rows = samples.rows + at,
                        .targets = samples.targets ? samples.targets + at : nullptr,
                        .ahead = 0,
                        .scratch = scratches[thread].get()};
        panel.ahead = static_cast<int>(
            std::min<std::size_t>(threads * kPanel, samples.count - at - panel.count));
        if (outputs != nullptr) panel.outputs = outputs + at * layers.back().outputs;
        if (losses != nullptr) panel.losses = losses + at;
        if (norms != nullptr) panel.norms = norms + at;
        if (const int some = loops.panel(step, panel)) nonfinite.fetch_add(some);
      });
      others = 0;
      if (step.mode == Mode::kEvaluate) continue;
      share(tiles.size(), [&](int, std::size_t t) {
        TileTask tile = tiles[t];
        tile.panels = panels;
        tile.accumulate = accumulate || first > 0;
        loops.tile(step, tile);
      });
    }
    return nonfinite;
  }
};

Mlp::Mlp(std::vector<Layer> layers, Loss loss, int threads, Isa isa)
    : plan_(std::make_unique<Plan>()) {
  check(layers, loss, threads);
  Plan& plan = *plan_;
  plan.loops = loops_of(isa);
  plan.loss = loss;
  plan.threads = threads;
  std::size_t sample = 0;
  std::size_t widest = 0;
  for (const Layer& layer : layers) {
    LayerTask task{.inputs = layer.inputs,
                   .outputs = layer.outputs,
                   .activation = layer.activation,
                   .weight = plan.parameters,
                   .has_bias = layer.bias};
    plan.parameters += static_cast<std::size_t>(layer.inputs) * layer.outputs;
    task.bias = plan.parameters;
    if (layer.bias) plan.parameters += layer.outputs;
    plan.layers.push_back(task);
    sample += padded(layer.inputs) + layer.outputs;
    widest = std::max({widest, padded(layer.inputs), padded(layer.outputs)});
    plan.scratch += padded(layer.inputs) * kPanel;
  }
  plan.scratch += 4 * widest * kPanel;
  plan.chunk = std::clamp<std::size_t>(kChunkBytes / (sample * sizeof(float)) / kPiece * kPiece,
                                       kPiece, kChunkMost);
  plan.features.resize(layers.size());
  plan.deltas.resize(layers.size());
  for (int thread = 0; thread < threads; ++thread) plan.scratches.push_back(zeros(plan.scratch));

  // A block of features stays in the first cache while all rows pass.
  for (int l = 0; l < static_cast<int>(layers.size()); ++l) {
    for (int block = 0; block * kPanel < layers[l].inputs; ++block) {
      for (int row = 0; row < layers[l].outputs; row += plan.loops.tile_rows) {
        plan.tiles.push_back({.layer = l, .row = row, .block = block});
      }
    }
  }
}

Mlp::Mlp(Mlp&&) noexcept = default;

Mlp::~Mlp() = default;

std::size_t Mlp::parameters() const { return plan_->parameters; }

std::size_t Mlp::clipped_sum(const float* parameters, const Samples& samples, const ClipRule& rule,
                             float* total, float* losses, double* norms, bool accumulate,
                             const Beside& beside) {
  dpcomm::check(rule, plan_->layers.size());
  return plan_->run(
      {.mode = Mode::kClipped, .parameters = parameters, .clip = rule, .total = total}, samples,
      nullptr, losses, norms, accumulate, beside);
}

void Mlp::gradient_sum(const float* parameters, const Samples& samples, float* total, float* losses,
                       bool accumulate, const Beside& beside) {
  plan_->run({.mode = Mode::kGradient, .parameters = parameters, .total = total}, samples, nullptr,
             losses, nullptr, accumulate, beside);
}

void Mlp::evaluate(const float* parameters, const Samples& samples, float* outputs, float* losses) {
  plan_->run({.mode = Mode::kEvaluate, .parameters = parameters}, samples, outputs, losses, nullptr,
             false, {});
}

}  // namespace dpcomm
