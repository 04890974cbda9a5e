// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include <cmath>

#include "model/ghost_clip.hpp"
#include "privacy/lanes.hpp"

namespace dpcomm {
namespace {

using L = Lanes;
constexpr std::size_t kCount = Lanes::kCount;

}  // namespace

// The order of additions depends on the width of the vectors; the bound holds for any.
template <>
double square_of<L::kCount>(const float* row, std::size_t count) {
  constexpr std::size_t kHalf = kCount / 2;
  L::Double sums[4] = {};
  std::size_t i = 0;
  for (; i + 4 * kHalf <= count; i += 4 * kHalf) {
#pragma GCC unroll 4
    for (std::size_t k = 0; k < 4; ++k) {
      sums[k] = L::add_square(sums[k], L::load_double(row + i + k * kHalf));
    }
  }
  const L::Double all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = 0;
  for (std::size_t k = 0; k < kHalf; ++k) sum += all[k];
  for (; i < count; ++i) sum += static_cast<double>(row[i]) * row[i];
  return sum;
}

template <>
void scale_row<L::kCount>(const float* row, float scale, std::size_t count, float* out) {
  std::size_t i = 0;
  for (; i + kCount <= count; i += kCount) L::store(out + i, L::load(row + i) * scale);
  for (; i < count; ++i) out[i] = row[i] * scale;
}

template <>
void clip_row<L::kCount>(float factor, std::size_t count, float* row) {
  std::size_t i = 0;
  for (; i + kCount <= count; i += kCount) {
    const L::Float product = L::load(row + i) * factor;
    const L::Word exponent = L::bits(product) & 0x7f800000u;
    L::store(row + i, exponent == 0 ? L::Float{} : product);
  }
  for (; i < count; ++i) {
    const float product = row[i] * factor;
    row[i] = std::fpclassify(product) == FP_NORMAL ? product : 0;
  }
}

}  // namespace dpcomm
