// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "privacy/clip_lanes.hpp"

#include "privacy/lanes.hpp"

namespace dpcomm {
namespace {

using L = Lanes;
constexpr std::size_t kCount = Lanes::kCount;
constexpr std::size_t kStep = kSquareLanes * kSquareChain;
constexpr std::size_t kLine = 64;

// The squares are what reads the gradients from memory. Fetched this far ahead, past the end of the
// row too, they arrive as fast as for a plain sum; the processor's own prefetching starts anew at
// each row and page.
constexpr std::size_t kAheadBytes = 8 << 10;

template <class T>
DPCOMM_HD void fetch_ahead(const T* numbers) {
  const auto* begin = reinterpret_cast<const char*>(numbers) + kAheadBytes;
  for (std::size_t b = 0; b < kStep * sizeof(T); b += kLine) __builtin_prefetch(begin + b);
}

template <class T>
DPCOMM_HD void add_squares(const T* numbers, L::Double* sums) {
  for (std::size_t lane = 0; lane < kSquareLanes; lane += kCount) {
    const L::Float first = L::load(numbers + lane);
    L::Float chain = first * first;
    for (std::size_t k = 1; k < kSquareChain; ++k) {
      const L::Float x = L::load(numbers + k * kSquareLanes + lane);
      chain = L::fma(x, x, chain);
    }
    L::add_double(chain, sums + 2 * lane / kCount);
  }
}

template <class T>
double squares_of(const T* row, std::size_t count) {
  L::Double sums[2 * kSquareLanes / kCount] = {};
  std::size_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    fetch_ahead(row + i);
    add_squares(row + i, sums);
  }
  if (i < count) {
    T padded[kStep] = {};
    std::memcpy(padded, row + i, (count - i) * sizeof(T));
    add_squares(padded, sums);
  }
  double partial[kSquareLanes];
  std::memcpy(partial, sums, sizeof partial);
  for (std::size_t width = kSquareLanes / 2; width > 0; width /= 2) {
    for (std::size_t k = 0; k < width; ++k) partial[k] += partial[k + width];
  }
  return partial[0];
}

template <class T>
void sum_squares(const void* data, std::size_t count, std::size_t piece, double* sums) {
  const T* row = static_cast<const T*>(data);
  for (; count > piece; count -= piece, row += piece) *sums++ = squares_of(row, piece);
  *sums = squares_of(row, count);
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
  if (const std::size_t rest = count - i; rest > 0) {
    float end[kCount] = {};
    std::memcpy(end, total + i, rest * sizeof(float));
    L::Float sum = L::load(end);
    for (int r = 0; r < kRows; ++r) {
      T padded[kCount] = {};
      std::memcpy(padded, row[r] + i, rest * sizeof(T));
      sum = L::fma(factor[r], L::load(padded), sum);
    }
    L::store(end, sum);
    std::memcpy(total + i, end, rest * sizeof(float));
  }
}

template <class T>
void add_rows(const void* const* rows, const float* factors, std::size_t row_count, float* total,
              std::size_t count) {
  std::size_t r = 0;
  for (; r + 8 <= row_count; r += 8) add_some<8, T>(rows + r, factors + r, total, count);
  for (; r + 4 <= row_count; r += 4) add_some<4, T>(rows + r, factors + r, total, count);
  for (; r < row_count; ++r) add_some<1, T>(rows + r, factors + r, total, count);
}

}  // namespace

template <>
void sum_squares<kCount>(DType dtype, const void* row, std::size_t count, std::size_t piece,
                         double* sums) {
  switch (dtype) {
    case DType::kBFloat16:
      return sum_squares<BFloat16>(row, count, piece, sums);
    case DType::kFloat16:
      return sum_squares<Float16>(row, count, piece, sums);
    default:
      return sum_squares<float>(row, count, piece, sums);
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
