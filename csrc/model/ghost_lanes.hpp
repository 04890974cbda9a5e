#pragma once

#include "model/ghost.hpp"
#include "model/mlp_lanes.hpp"
#include "privacy/lanes.hpp"

namespace dpcomm {
namespace {

// sums [kPanel] = sum of squares over the rows of x [rows, kPanel].
inline void squares(const float* x, int rows, double* sums) {
  constexpr int kStep = Lanes::kCount / 2;
  for (int lane = 0; lane < kPanel; lane += 4 * kStep) {
    Lanes::Double sum[4] = {};
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        sum[k] = Lanes::add_square(sum[k], Lanes::load_double(x + row * kPanel + lane + k * kStep));
      }
    }
    std::memcpy(sums + lane, sum, sizeof sum);
  }
}

// x [rows, kPanel] *= factors [kPanel], with products that are no normal numbers as zero.
inline void scale(const float* factors, int rows, float* x) {
  for (int row = 0; row < rows; ++row) {
    for (int lane = 0; lane < kPanel; lane += Lanes::kCount) {
      const Lanes::Float product =
          Lanes::load(x + row * kPanel + lane) * Lanes::load(factors + lane);
      const Lanes::Word size = Lanes::bits(product) & 0x7f800000u;
      Lanes::store(x + row * kPanel + lane, size == 0 ? Lanes::Float{} : product);
    }
  }
}

}  // namespace
}  // namespace dpcomm
