#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "privacy/clip_rule.hpp"
#include "privacy/isa.hpp"

namespace dpcomm {

struct GhostLayer {
  int inputs;
  int outputs;
  float* weight_sum;  // [outputs, inputs]
  float* bias_sum;    // [outputs], or null where there is no bias
};

// One use of a layer by a batch: what entered, and the loss gradients of what left.
struct GhostUse {
  const float* inputs;  // [samples, inputs], rows `input_stride` apart
  std::size_t input_stride;
  const float* gradients;  // [samples, outputs], rows `gradient_stride` apart
  std::size_t gradient_stride;
};

// The sums of clipped per-sample gradients of linear layers, none of which is ever formed.
//
// One call at a time: the object owns the scratch.
class GhostSum {
 public:
  // UsageError for no layers, and for sizes or threads that are not positive.
  explicit GhostSum(const std::vector<GhostLayer>& layers, int threads = 1, Isa isa = best_isa());
  GhostSum(GhostSum&&) noexcept;
  ~GhostSum();

  // The sums (+)= those of `scale` times the samples' gradients, each clipped to an L2 norm of at
  // most the rule's, over all layers or in each, in exact arithmetic (ghost.hpp has the argument).
  // `norms` [samples] receives those over all layers, before clipping.
  //
  // A sample whose gradient is not finite adds nothing; returns how many there were. The same bits
  // for any number of threads and any Isa. UsageError for a rule that does not fit the layers.
  std::size_t add(std::span<const GhostUse> uses, std::size_t samples, float scale,
                  const ClipRule& rule, double* norms, bool accumulate);

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

}  // namespace dpcomm
