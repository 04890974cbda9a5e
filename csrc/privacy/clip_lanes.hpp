#pragma once

#include <cstddef>

#include "base/dtype.hpp"

namespace dpcomm {

// The loops over rows of gradients, kCount lanes at a time; with kCount = 1, the plain reference.

// sums[k] = the sum of squares over the k-th `piece` of the row: float32 over 4 numbers that lie
// 16 apart, double over those. Whatever the range of pieces, a piece's sum has the same bits.
template <int kCount>
void sum_squares(DType dtype, const void* row, std::size_t count, std::size_t piece, double* sums);

// total[i] = fma(factors[r], rows[r][i], total[i]), for one row r after the other.
template <int kCount>
void add_rows(DType dtype, const void* const* rows, const float* factors, std::size_t row_count,
              float* total, std::size_t count);

inline constexpr std::size_t kSquareLanes = 16;
inline constexpr std::size_t kSquareChain = 4;

}  // namespace dpcomm
