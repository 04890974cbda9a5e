// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "privacy/clip_lanes.hpp"

#include "privacy/lanes.hpp"

namespace dpcomm {
namespace {

using L = Lanes;
constexpr int kCount = Lanes::kCount;

template <class T>
double sum_of_squares(const T* row, std::size_t count) {
  constexpr std::size_t kStep = kCount / 2;
  constexpr std::size_t kVectors = kSquareSums / kStep;
  L::Double sums[kVectors] = {};
  std::size_t i = 0;
  for (; i + kSquareSums <= count; i += kSquareSums) {
    for (std::size_t k = 0; k < kVectors; ++k) {
      sums[k] = L::add_square(sums[k], L::load_double(row + i + k * kStep));
    }
  }
  if (i < count) {
    T rest[kSquareSums] = {};
    std::memcpy(rest, row + i, (count - i) * sizeof(T));
    for (std::size_t k = 0; k < kVectors; ++k) {
      sums[k] = L::add_square(sums[k], L::load_double(rest + k * kStep));
    }
  }
  double partial[kSquareSums];
  std::memcpy(partial, sums, sizeof partial);
  for (std::size_t width = kSquareSums / 2; width > 0; width /= 2) {
    for (std::size_t k = 0; k < width; ++k) partial[k] += partial[k + width];
  }
  return partial[0];
}

// kRows rows in one pass over the total.
template <int kRows, class T>
void add_some(const void* const* rows, const float* factors, float* total, std::size_t count) {
  const T* row[kRows];
  L::Float factor[kRows];
  for (int r = 0; r < kRows; ++r) {
    row[r] = static_cast<const T*>(rows[r]);
    factor[r] = L::broadcast(factors[r]);
  }
  std::size_t i = 0;
  for (; i + kCount <= count; i += kCount) {
    L::Float sum = L::load(total + i);
    for (int r = 0; r < kRows; ++r) sum = L::fma(factor[r], L::load(row[r] + i), sum);
    L::store(total + i, sum);
  }
  if (i < count) {
    float rest[kCount] = {};
    std::memcpy(rest, total + i, (count - i) * sizeof(float));
    L::Float sum = L::load(rest);
    for (int r = 0; r < kRows; ++r) {
      T end[kCount] = {};
      std::memcpy(end, row[r] + i, (count - i) * sizeof(T));
      sum = L::fma(factor[r], L::load(end), sum);
    }
    L::store(rest, sum);
    std::memcpy(total + i, rest, (count - i) * sizeof(float));
  }
}

template <class T>
void add_rows(const void* const* rows, const float* factors, std::size_t row_count, float* total,
              std::size_t count) {
  std::size_t r = 0;
  for (; r + 4 <= row_count; r += 4) add_some<4, T>(rows + r, factors + r, total, count);
  for (; r < row_count; ++r) add_some<1, T>(rows + r, factors + r, total, count);
}

}  // namespace

template <>
double sum_of_squares<kCount>(DType dtype, const void* row, std::size_t count) {
  switch (dtype) {
    case DType::kBFloat16:
      return sum_of_squares(static_cast<const BFloat16*>(row), count);
    case DType::kFloat16:
      return sum_of_squares(static_cast<const Float16*>(row), count);
    default:
      return sum_of_squares(static_cast<const float*>(row), count);
  }
}

template <>
void add_rows<kCount>(DType dtype, const void* const* rows, const float* factors,
                      std::size_t row_count, float* total, std::size_t count) {
  switch (dtype) {
    case DType::kBFloat16:
      return add_rows<BFloat16>(rows, factors, row_count, total, count);
    case DType::kFloat16:
      return add_rows<Float16>(rows, factors, row_count, total, count);
    default:
      return add_rows<float>(rows, factors, row_count, total, count);
  }
}

}  // namespace dpcomm
