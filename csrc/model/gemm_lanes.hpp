#pragma once

#include <cstddef>
#include <utility>

#include "model/panels_lanes.hpp"
#include "privacy/lanes.hpp"

// Small matrix products, kRows x kPanel of the result in registers (Goto and van de Geijn, "Anatomy
// of high-performance matrix multiplication", ACM TOMS 34(3), 2008, whose inner kernel this is; our
// operands are laid out so that nothing is packed). Each number of the result is one chain of fused
// multiply-adds in the order of the inner index, whatever the width of the vectors.

namespace dpcomm {
namespace {

// The left operand: element (row, k) at data[row * row_step + k * step], any layout at all.
struct Left {
  const float* data;
  std::size_t row_step;
  std::size_t step;
};

// kRows x kVectors vectors of a result.
template <int kRows, int kVectors>
struct Sums {
  Lanes::Float sums[kRows][kVectors];

  // += left [kRows, depth] * right [depth, kVectors vectors], a right row every `right_step`.
  DPCOMM_HD void multiply_add(int depth, Left left, const float* right, std::size_t right_step) {
    for (int k = 0; k < depth; ++k) {
      Lanes::Float from_right[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) from_right[v] = Lanes::load(right + v * Lanes::kCount);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const Lanes::Float factor = Lanes::broadcast(left.data[row * left.row_step]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[row][v] = Lanes::fma(factor, from_right[v], sums[row][v]);
        }
      }
      left.data += left.step;
      right += right_step;
    }
  }
};

// Calls f with the number of rows as a constant.
template <int kMost, class F>
DPCOMM_HD void with_rows(int rows, F&& f) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, f);
  }
  f(std::integral_constant<int, kMost>());
}

// out [rows, kPanel] = bias [rows] + left [rows, depth] * right [depth, kPanel]; no bias if null.
inline void panel_product(int rows, int depth, Left left, const float* right, const float* bias,
                          float* out) {
  constexpr int kVectors = 2;
  constexpr int kWidth = kVectors * Lanes::kCount;
  constexpr int kMost = kTileRows<Lanes::kCount>;
  for (int row = 0; row < rows; row += kMost) {
    with_rows<kMost>(rows - row, [&](auto constant) {
      constexpr int kRows = decltype(constant)::value;
      for (int column = 0; column < kPanel; column += kWidth) {
        Sums<kRows, kVectors> tile;
        for (int r = 0; r < kRows; ++r) {
          for (auto& sum : tile.sums[r]) sum = Lanes::broadcast(bias ? bias[row + r] : 0);
        }
        tile.multiply_add(depth, {left.data + row * left.row_step, left.row_step, left.step},
                          right + column, kPanel);
        for (int r = 0; r < kRows; ++r) {
          for (int v = 0; v < kVectors; ++v) {
            Lanes::store(out + (row + r) * kPanel + column + v * Lanes::kCount, tile.sums[r][v]);
          }
        }
      }
    });
  }
}

// out[j][i] = in[i][j] in kPanel x kPanel blocks, for the first rows and columns of `in` at least.
// log2(n) perfect shuffles transpose n vectors.
inline void transpose(const float* in, int rows_in, int columns_in, float* out) {
  constexpr int n = Lanes::kCount;
  Lanes::Int low, high;
  for (int i = 0; i < n; ++i) {
    low[i] = i / 2 + (i % 2) * n;
    high[i] = low[i] + n / 2;
  }
  for (int i = 0; i < rows_in; i += n) {
    for (int j = 0; j < columns_in; j += n) {
      Lanes::Float rows[n], next[n];
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) rows[r] = Lanes::load(in + (i + r) * kPanel + j);
#pragma GCC unroll 4
      for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 8
        for (int r = 0; r < n / 2; ++r) {
          next[2 * r] = __builtin_shuffle(rows[r], rows[r + n / 2], low);
          next[2 * r + 1] = __builtin_shuffle(rows[r], rows[r + n / 2], high);
        }
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) rows[r] = next[r];
      }
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) Lanes::store(out + (j + r) * kPanel + i, rows[r]);
    }
  }
}

}  // namespace
}  // namespace dpcomm
