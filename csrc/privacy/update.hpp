#pragma once

#include <cstddef>
#include <cstdint>
#include <variant>

#include "privacy/noise.hpp"

namespace dpcomm {

// The optimizers of torch.optim by their names there: SGD, whose momentum begins with a buffer of
// zeros, and Adam or, with decoupled weight decay, AdamW.
struct Sgd {
  double lr;
  double momentum = 0;
  double weight_decay = 0;
  bool nesterov = false;
};
struct Adam {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  bool decoupled_weight_decay = false;
  std::uint64_t count = 1;  // of updates, with this one
};
using Optimizer = std::variant<Sgd, Adam>;

// How many numbers it keeps for each parameter: Sgd none, or its momentum; Adam the moving averages
// of the gradient and of its square.
int states_of(const Optimizer& optimizer);

// What a rank updates: its own shard of each.
struct UpdateShard {
  const float* gradient;  // the sum over samples and ranks
  float* parameters;
  float* states[2];  // the first states_of(optimizer)
};

// With g = fma(std, noise(offset + i), gradient[i]) * scale, the bits of add_noise(), one
// step of the optimizer on parameters[i] and states[.][i], in one pass over the memory. Its
// operations, and their order, are those of update_rule.hpp: float32, each rounded, none fused, so
// that every processor, and NumPy, gives the same bits.
//
// UsageError as in add_noise(), and for an optimizer's number that is negative or not finite, a
// factor of a moving average that is not below 1, or Nesterov's step without momentum.
void update(const UpdateShard& shard, std::size_t count, std::uint64_t offset,
            const NoiseSpec& spec, float scale, const Optimizer& optimizer, int threads = 1,
            Isa isa = best_isa());

}  // namespace dpcomm
