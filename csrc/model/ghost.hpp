#pragma once

// Norms of per-sample gradients that are never formed. A linear layer's gradient for one sample is
// the outer product of the output gradient d and the input a (bias: of d and 1), so its squared
// norm is |d|^2 (|a|^2 + 1) (Goodfellow, "Efficient per-example gradient computations",
// arXiv:1510.01799, 2015), and clipping scales d alone.
//
// The bound. What a sample adds to the sum is the outer product of round(factor * d) and (a, 1).
// Its norm is at most clip_norm, in exact arithmetic, whether one takes these products exactly, as
// the fused multiply-adds do, or rounded to float32:
//
// - Squares of floats are exact in double and can neither overflow nor vanish. A sum of n of them
//   has a relative error of at most n 2^-53, a product of two such sums of at most the sum of both
//   and 2^-53. With n the numbers that enter the norm, all layers' inputs and outputs, the true
//   norm is at most norm (1 + (n + 8) 2^-53); and the norm is finite where all of these numbers
//   are, and only there.
// - round(factor * d_i) is at most factor |d_i| (1 + 2^-24) if it is a normal number; if it is not
//   it is replaced by zero (ghost_lanes.hpp), for next to a large `a` its rounding could matter.
// - Rounding a product adds at most 2^-24 of it, or 2^-150 where it is subnormal: to the norm over
//   p parameters at most 2^-24 of it and 2^-150 sqrt(p).
// - The factor is the quotient of what that leaves of clip_norm and the upper bound, rounded down
//   (clip_factor.hpp).
//
// A sample whose norm is certainly within clip_norm is taken as it is; with a stability above 0
// (clip_rule.hpp) none is, and the norm in the quotient is larger by the stability, so that the
// factor is smaller than the one above. That one may be above 1, which the bounds on rounding
// allow; a product that overflows is replaced by zero too.

namespace dpcomm {

inline constexpr double kGhostRounding = (1 + 0x1p-24) * (1 + 0x1p-24);  // of both products

}  // namespace dpcomm
