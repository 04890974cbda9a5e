#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/panels.hpp"
#include "privacy/clip_rule.hpp"
#include "privacy/isa.hpp"

namespace dpcomm {

enum class Activation : std::uint8_t { kNone, kRelu, kTanh, kSigmoid, kGelu };
enum class Loss : std::uint8_t { kBinaryCrossEntropy, kCrossEntropy, kSquaredError };

// x -> activation(W x + b), W [outputs, inputs].
struct Layer {
  int inputs;
  int outputs;
  bool bias;
  Activation activation;
};

// Samples where they lie: sample i has its features at rows[i] and its targets at targets[i], so
// that a batch is gathered from mapped shards by the step itself. Cross entropy takes one target,
// the class as a float; the other losses take one for each output.
struct Samples {
  std::size_t count;
  const float* const* rows;
  const float* const* targets;
};

// A chain of linear layers and activations with its loss: forward, backward and the sum of the
// gradients of a batch in one call, over float32 parameters in one flat buffer (for each layer W
// row by row, then b: the order of torch's nn.Sequential).
//
// A sample's loss is the sum over its outputs; a gradient is the sum over samples. The same bits
// for any number of threads and any Isa.
//
// One call at a time: the object owns the scratch.
class Mlp {
 public:
  // UsageError where the layers do not fit each other or the loss.
  Mlp(const std::vector<Layer>& layers, Loss loss, int threads = 1, Isa isa = best_isa());
  Mlp(Mlp&&) noexcept;
  ~Mlp();

  std::size_t parameters() const;  // how many

  // total (+)= sum of the samples' gradients, each clipped to an L2 norm of at most the rule's,
  // over all layers or in each, in exact arithmetic (ghost.hpp has the argument). `norms` receives
  // the norms over all layers, before clipping.
  //
  // A sample whose gradient is not finite adds nothing; returns how many there were. An empty
  // batch gives zeros. UsageError for a clip norm that is not positive and finite.
  //
  // `losses` and `norms` may be null.
  std::size_t clipped_sum(const float* parameters, const Samples& samples, const ClipRule& rule,
                          float* total, float* losses, double* norms, bool accumulate = false,
                          const Beside& beside = {});

  // total (+)= sum of the samples' gradients, as they are.
  void gradient_sum(const float* parameters, const Samples& samples, float* total, float* losses,
                    bool accumulate = false, const Beside& beside = {});

  // outputs [count, outputs] of the last layer; `losses` needs targets. Each may be null.
  void evaluate(const float* parameters, const Samples& samples, float* outputs, float* losses);

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

}  // namespace dpcomm
