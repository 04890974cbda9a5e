#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "privacy/clip.hpp"
#include "privacy/clip_lanes.hpp"

namespace dpcomm {
namespace {

// A piece is what one call of the inner loops works on. Its size depends on nothing but the
// columns, so that the order of each sum does not depend on the threads.
constexpr std::size_t kPieceMin = 512;
constexpr std::size_t kPieceMax = 4096;
constexpr std::size_t kPiecesWanted = 32;

// Rows are taken in groups: the norms of a group first, then its sum, from the cache.
constexpr std::size_t kGroupBytes = 512 << 10;
constexpr std::size_t kGroupRowsMin = 4;
constexpr std::size_t kGroupRowsMax = 64;

struct Piece {
  const std::byte* data;  // of row 0
  std::size_t row_bytes;
  std::size_t count;
  float* total;
};

std::vector<Piece> cut(std::span<const GradBlock> blocks, std::size_t element, float* total) {
  std::vector<Piece> pieces;
  for (const GradBlock& block : blocks) {
    const std::size_t even = (block.columns / kPiecesWanted + 63) / 64 * 64;
    const std::size_t size = std::clamp(even, kPieceMin, kPieceMax);
    for (std::size_t begin = 0; begin < block.columns; begin += size) {
      pieces.push_back({.data = static_cast<const std::byte*>(block.data) + begin * element,
                        .row_bytes = block.row_stride * element,
                        .count = std::min(size, block.columns - begin),
                        .total = total + begin});
    }
    total += block.columns;
  }
  return pieces;
}

// The largest float that keeps the bound of clip.hpp, for a row of `count` numbers.
float clip_factor(double norm, std::size_t count, double clip_norm) {
  const auto n = static_cast<double>(count);
  const double longest = norm * (1 + (n + 8) * 0x1p-53);
  if (longest <= clip_norm) return 1;
  const double left = clip_norm - 0x1p-150 * std::sqrt(n);
  const double quotient = left / (longest * (1 + 0x1p-24)) * (1 - 0x1p-50);
  if (!(quotient > 0)) return 0;
  const auto nearest = static_cast<float>(quotient);
  return nearest <= quotient ? nearest : std::nextafterf(nearest, 0);
}

float number_at(DType dtype, const void* row, std::size_t i) {
  switch (dtype) {
    case DType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(row)[i]);
    case DType::kFloat16:
      return to_float(static_cast<const Float16*>(row)[i]);
    default:
      return static_cast<const float*>(row)[i];
  }
}

}  // namespace

template <>
double sum_of_squares<1>(DType dtype, const void* row, std::size_t count) {
  double sums[kSquareSums] = {};
  for (std::size_t i = 0; i < count; ++i) {
    const double g = number_at(dtype, row, i);
    sums[i % kSquareSums] += g * g;
  }
  for (std::size_t width = kSquareSums / 2; width > 0; width /= 2) {
    for (std::size_t k = 0; k < width; ++k) sums[k] += sums[k + width];
  }
  return sums[0];
}

template <>
void add_rows<1>(DType dtype, const void* const* rows, const float* factors, std::size_t row_count,
                 float* total, std::size_t count) {
  for (std::size_t r = 0; r < row_count; ++r) {
    for (std::size_t i = 0; i < count; ++i) {
      total[i] = std::fma(factors[r], number_at(dtype, rows[r], i), total[i]);
    }
  }
}

namespace {

struct Loops {
  decltype(&sum_of_squares<1>) squares;
  decltype(&add_rows<1>) add;
};

Loops loops_of(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return {&sum_of_squares<1>, &add_rows<1>};
    case Isa::kGeneric:
      return {&sum_of_squares<4>, &add_rows<4>};
    case Isa::kAvx2:
      return {&sum_of_squares<8>, &add_rows<8>};
    case Isa::kAvx512:
      return {&sum_of_squares<16>, &add_rows<16>};
  }
  throw UsageError("unknown Isa");
}

}  // namespace

std::size_t clip_sum(std::span<const GradBlock> blocks, std::size_t rows, DType dtype,
                     double clip_norm, float* total, double* norms, int threads, Isa isa) {
  DPCOMM_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
               UsageError, "gradients of dtype ", name_of(dtype),
               ": give float32, bfloat16 or float16");
  DPCOMM_CHECK(clip_norm > 0 && std::isfinite(clip_norm), UsageError, "clip norm ", clip_norm,
               ": give a positive number");
  const std::size_t element = size_of(dtype);
  const std::vector<Piece> pieces = cut(blocks, element, total);
  std::size_t columns = 0;
  for (const GradBlock& block : blocks) columns += block.columns;
  std::fill_n(total, columns, 0.0f);

  const Loops loops = loops_of(isa);
  threads = static_cast<int>(std::clamp<std::size_t>(pieces.size(), 1, threads));
  const auto for_my_pieces = [&](int thread, const auto& work) {
    const std::size_t end = pieces.size() * (thread + 1) / threads;
    for (std::size_t p = pieces.size() * thread / threads; p < end; ++p) work(p);
  };
  const std::size_t bytes = std::max<std::size_t>(columns * element / threads, 1);
  const std::size_t group = std::clamp(kGroupBytes / bytes, kGroupRowsMin, kGroupRowsMax);
  std::vector<double> squares(group * pieces.size());
  std::vector<std::size_t> kept;  // the finite rows of a group
  std::vector<float> factors;
  std::size_t nonfinite = 0;

  for (std::size_t first = 0; first < rows; first += group) {
    const std::size_t some = std::min(group, rows - first);
    parallel(threads, [&](int thread) {
      for (std::size_t r = 0; r < some; ++r) {
        for_my_pieces(thread, [&](std::size_t p) {
          const Piece& piece = pieces[p];
          squares[r * pieces.size() + p] =
              loops.squares(dtype, piece.data + (first + r) * piece.row_bytes, piece.count);
        });
      }
    });
    kept.clear();
    factors.clear();
    for (std::size_t r = 0; r < some; ++r) {
      double sum = 0;
      for (std::size_t p = 0; p < pieces.size(); ++p) sum += squares[r * pieces.size() + p];
      const double norm = std::sqrt(sum);
      norms[first + r] = norm;
      if (!std::isfinite(norm)) {
        ++nonfinite;
        continue;
      }
      kept.push_back(first + r);
      factors.push_back(clip_factor(norm, columns, clip_norm));
    }
    parallel(threads, [&](int thread) {
      std::vector<const void*> starts(kept.size());
      for_my_pieces(thread, [&](std::size_t p) {
        const Piece& piece = pieces[p];
        for (std::size_t k = 0; k < kept.size(); ++k) {
          starts[k] = piece.data + kept[k] * piece.row_bytes;
        }
        loops.add(dtype, starts.data(), factors.data(), kept.size(), piece.total, piece.count);
      });
    });
  }
  return nonfinite;
}

}  // namespace dpcomm
