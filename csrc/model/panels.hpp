#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "model/aligned.hpp"
#include "model/panels_lanes.hpp"
#include "privacy/isa.hpp"

namespace dpcomm {

// Work that needs none of the samples, in `count` parts: the threads that go through the samples do
// it too, first, so that none of them is idle while there is any. It must not throw.
struct Beside {
  std::size_t count = 0;
  std::function<void(std::size_t)> work = {};
};

// Gradients of linear layers, summed over a batch: of each sample the outer product of the layer's
// delta and features. Samples pass in panels of 32 whose numbers stay in the cache, and the sums
// over samples are taken in pieces of 256 in the order of the batch: the same bits for any number
// of threads and any Isa.
class Panels {
 public:
  // Of one thread.
  struct Scratch {
    AlignedFloats floats;
    std::vector<double> squares;  // [layers][kPanel]
  };

  // `floats`: how many a thread's scratch has.
  Panels(std::vector<LinearLayer> layers, std::size_t floats, int threads, Isa isa);

  std::span<LinearLayer> layers() { return layers_; }  // whose sums' places the caller sets
  int threads() const { return static_cast<int>(scratches_.size()); }

  // fill(scratch, chunk, panel) puts a panel's numbers into the layers' features and deltas, with
  // zeros for deltas behind the last sample; returns the samples that were not finite.
  using Fill = std::function<int(Scratch&, const Chunk&, const Panel&)>;

  // Fills panels with all samples, and adds them to the layers' sums or, if not `accumulate`,
  // begins those. Returns the samples that were not finite.
  std::size_t sum(std::size_t samples, bool accumulate, const Fill& fill,
                  const Beside& beside = {});

  // The same without the sums.
  std::size_t pass(std::size_t samples, const Fill& fill);

 private:
  void reserve(std::size_t samples);
  std::size_t run(std::size_t samples, const Fill& fill, const Beside& beside, bool sums,
                  bool accumulate);

  std::vector<LinearLayer> layers_;
  std::vector<Scratch> scratches_;
  decltype(&add_tile<16>) add_tile_;
  std::vector<Tile> tiles_;
  std::size_t chunk_;       // samples at a time, at most
  std::size_t places_ = 0;  // samples that the buffers have place for
  std::vector<AlignedFloats> buffers_;
};

}  // namespace dpcomm
