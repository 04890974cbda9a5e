#pragma once

#include <cstddef>

#include "base/dtype.hpp"

namespace dpcomm {

// The loops over one row's piece, kCount lanes at a time; with kCount = 1, the plain reference.

// The sum of squares, in 32 partial sums that are then added in pairs.
template <int kCount>
double sum_of_squares(DType dtype, const void* row, std::size_t count);

// total[i] = fma(factors[r], rows[r][i], total[i]) for one row r after the other.
template <int kCount>
void add_rows(DType dtype, const void* const* rows, const float* factors, std::size_t row_count,
              float* total, std::size_t count);

inline constexpr std::size_t kSquareSums = 32;

}  // namespace dpcomm
