#pragma once

#include <cstddef>
#include <span>

#include "base/dtype.hpp"
#include "privacy/clip_rule.hpp"
#include "privacy/isa.hpp"

namespace dpcomm {

// Per-sample gradients of one parameter, or of all: a row for each sample.
struct GradBlock {
  const void* data;
  std::size_t columns;
  std::size_t row_stride;  // in elements
};

// Clips each row by the rule and sums the rows: total[j] = sum_i factor_i grads[i][j].
//
// A sample's row is its row in every block, one after the other; where the rule has several norms,
// each block is a layer and has factors of its own. `total` holds the sum of the blocks' columns in
// that order, `norms` [rows, rule.norms.size()] the norms before clipping, NaN or infinite where
// the row is. `dtype` is float32, bfloat16 or float16; sums are float32, in the order of the rows,
// with one rounding a row (an fma). Short rows are summed in stripes, and then the stripes' sums in
// their order; the shape alone says in which. So the bits are the same for any number of threads
// and any Isa.
//
// The bound. What a row adds to a layer has an L2 norm of at most clip_norm, in exact arithmetic,
// whether one takes the products factor * g exactly or rounded to float32:
//
// - The squares of a row are summed in float32 over four numbers, with four roundings, then in
//   double. While nothing overflows and the squares' mean is at least 2^-76, so that what is lost
//   to underflow is below 2^-50 of the sum, flushed to zero or not, the norm is right to
//   2^-22 + n 2^-53, n being the number of columns.
// - Out of that range, and where the norm is within 2^-21 of clip_norm, the row is summed again in
//   double. There squares of floats are exact and can neither overflow nor vanish, and a sum of n
//   of them, in any order, is right to n 2^-53. It is finite exactly where the row is.
// - Rounding a product to float32 adds at most 2^-24 of it, or 2^-150 where it is subnormal, hence
//   to the norm at most 2^-24 of it and 2^-150 sqrt(n).
// - The factor is the quotient of what that leaves of clip_norm and the upper bound on the norm,
//   rounded down to float32.
//
// Without stability, a row whose norm is certainly within clip_norm is taken as it is; one that may
// be n 2^-53 above it is not, and loses two units in the last place of the factor.
//
// A row that is not finite, be it in one layer, adds nothing to any and is counted. No rows, or no
// columns, give zeros. Returns that count. UsageError for another dtype, and for what check() of
// clip_rule.hpp refuses.
std::size_t clip_sum(std::span<const GradBlock> blocks, std::size_t rows, DType dtype,
                     const ClipRule& rule, float* total, double* norms, int threads = 1,
                     Isa isa = best_isa());

}  // namespace dpcomm
