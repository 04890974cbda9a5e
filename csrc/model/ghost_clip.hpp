#pragma once

#include <cstddef>
#include <span>

#include "privacy/clip_rule.hpp"
#include "privacy/isa.hpp"

namespace dpcomm {

// One use of a linear layer by a batch: what entered, and the loss gradients of what left.
struct GhostLayer {
  const float* inputs;  // [samples, input_count], rows `input_stride` apart
  std::size_t input_count;
  std::size_t input_stride;
  const float* gradients;  // [samples, gradient_count], likewise
  std::size_t gradient_count;
  std::size_t gradient_stride;
  bool has_bias;
  float* clipped;  // [samples, gradient_count] without gaps, apart from `gradients`
};

// clipped = factor * (scale * gradients), where the factor bounds the norm of each sample's
// gradient, over all layers or in each (ghost.hpp): with it the sum of clipped gradients is one
// product of matrices a layer. `norms` receives those over all layers, before clipping. A sample
// whose norm is not finite has clipped gradients of 0; returns how many there are. Their inputs
// must be left out of the product.
std::size_t ghost_clip(std::span<const GhostLayer> layers, std::size_t samples, float scale,
                       const ClipRule& rule, double* norms, int threads = 1, Isa isa = best_isa());

// The loops, kCount lanes at a time.

template <int kCount>
double square_of(const float* row, std::size_t count);

// out = scale * row
template <int kCount>
void scale_row(const float* row, float scale, std::size_t count, float* out);

// row *= factor, with products that are no normal numbers as zero.
template <int kCount>
void clip_row(float factor, std::size_t count, float* row);

}  // namespace dpcomm
