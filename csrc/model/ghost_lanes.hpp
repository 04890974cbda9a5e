#pragma once

#include "model/ghost.hpp"
#include "model/mlp_lanes.hpp"
#include "privacy/lanes.hpp"

namespace dpcomm {
namespace {

// Half as many doubles as there are lanes.
typedef double Doubles __attribute__((vector_size(4 * Lanes::kCount)));

DPCOMM_HD Doubles load_doubles(const float* from) {
  typedef float Floats __attribute__((vector_size(2 * Lanes::kCount)));
  Floats floats;
  std::memcpy(&floats, from, sizeof floats);
#if defined(__AVX512F__) && DPCOMM_LANES == 16
  return _mm512_cvtps_pd(floats);
#else
  return __builtin_convertvector(floats, Doubles);
#endif
}

// The square of a float is exact in double, so that fusing changes no bit.
DPCOMM_HD Doubles add_square(Doubles sum, Doubles x) {
#if defined(__AVX512F__) && DPCOMM_LANES == 16
  return _mm512_fmadd_pd(x, x, sum);
#elif defined(__FMA__) && DPCOMM_LANES == 8
  return _mm256_fmadd_pd(x, x, sum);
#else
  return sum + x * x;
#endif
}

// sums [kPanel] = sum of squares over the rows of x [rows, kPanel].
inline void squares(const float* x, int rows, double* sums) {
  constexpr int kStep = Lanes::kCount / 2;
  for (int lane = 0; lane < kPanel; lane += 4 * kStep) {
    Doubles sum[4] = {};
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        sum[k] = add_square(sum[k], load_doubles(x + row * kPanel + lane + k * kStep));
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
      const Lanes::Word exponent = Lanes::bits(product) & 0x7f800000u;
      Lanes::store(x + row * kPanel + lane, exponent == 0 ? Lanes::Float{} : product);
    }
  }
}

}  // namespace
}  // namespace dpcomm
