#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "privacy/clip.hpp"
#include "privacy/clip_factor.hpp"
#include "privacy/clip_lanes.hpp"
#include "privacy/clip_rule.hpp"

namespace dpcomm {
namespace {

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
void sum_squares<1>(DType dtype, const void* row, std::size_t count, std::size_t piece,
                    double* out) {
  constexpr std::size_t kStep = kSquareLanes * kSquareChain;
  for (std::size_t first = 0; first < count; first += piece) {
    const std::size_t last = std::min(first + piece, count);
    double sums[kSquareLanes] = {};
    for (std::size_t begin = first; begin < last; begin += kStep) {
      float chain[kSquareLanes] = {};
      for (std::size_t i = begin; i < std::min(begin + kStep, last); ++i) {
        const float g = number_at(dtype, row, i);
        float& sum = chain[(i - first) % kSquareLanes];
        sum = std::fma(g, g, sum);
      }
      for (std::size_t k = 0; k < kSquareLanes; ++k) sums[k] += chain[k];
    }
    for (std::size_t width = kSquareLanes / 2; width > 0; width /= 2) {
      for (std::size_t k = 0; k < width; ++k) sums[k] += sums[k + width];
    }
    *out++ = sums[0];
  }
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

// Threads share the columns, by pieces. A piece's size depends on nothing but the number of
// columns, so that the order of each sum does not depend on the threads.
constexpr std::size_t kPieceMin = 1024;
constexpr std::size_t kPieceMax = 4096;
constexpr std::size_t kPiecesWanted = 32;

// A group of rows stays in the cache from its norms to its sum: in a core's own cache where the
// rows are short, in the shared one where they are long.
constexpr std::size_t kGroupBytes = 384 << 10;
constexpr std::size_t kGroupRowsMin = 4;
constexpr std::size_t kGroupRowsMax = 64;

// Adjacent pieces of one block.
struct Columns {
  const std::byte* data;  // of row 0
  std::size_t row_bytes;
  std::size_t count;
  std::size_t piece;
  std::size_t first_piece;  // counted over all blocks
  float* total;

  std::size_t pieces() const { return (count + piece - 1) / piece; }
  const void* row(std::size_t r) const { return data + r * row_bytes; }

  // The part that lies in pieces [begin, end) of all.
  Columns part(std::size_t begin, std::size_t end, std::size_t element) const {
    const std::size_t from = std::clamp(begin, first_piece, first_piece + pieces()) - first_piece;
    const std::size_t to = std::clamp(end, first_piece, first_piece + pieces()) - first_piece;
    Columns some = *this;
    some.data += from * piece * element;
    some.total += from * piece;
    some.count = std::min(to * piece, count) - std::min(from * piece, count);
    some.first_piece += from;
    return some;
  }
};

std::vector<Columns> columns_of(std::span<const GradBlock> blocks, std::size_t element,
                                float* total) {
  std::vector<Columns> all;
  std::size_t pieces = 0;
  for (const GradBlock& block : blocks) {
    const std::size_t even = (block.columns / kPiecesWanted + 63) / 64 * 64;
    all.push_back({.data = static_cast<const std::byte*>(block.data),
                   .row_bytes = block.row_stride * element,
                   .count = block.columns,
                   .piece = std::clamp(even, kPieceMin, kPieceMax),
                   .first_piece = pieces,
                   .total = total});
    pieces += all.back().pieces();
    total += block.columns;
  }
  return all;
}

struct Loops {
  decltype(&sum_squares<1>) squares;
  decltype(&add_rows<1>) add;
};

Loops loops_of(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return {&sum_squares<1>, &add_rows<1>};
    case Isa::kGeneric:
      return {&sum_squares<4>, &add_rows<4>};
    case Isa::kAvx2:
      return {&sum_squares<8>, &add_rows<8>};
    case Isa::kAvx512:
      return {&sum_squares<16>, &add_rows<16>};
  }
  throw UsageError("unknown Isa");
}

// The squares of floats, and of all that is smaller, are exact in double.
double exact_squares(std::span<const Columns> blocks, DType dtype, std::size_t row) {
  double sum = 0;
  for (const Columns& block : blocks) {
    for (std::size_t i = 0; i < block.count; ++i) {
      const double g = number_at(dtype, block.row(row), i);
      sum += g * g;
    }
  }
  return sum;
}

struct Norm {
  double value;
  double error;  // relative bound
};

// See "The bound" in clip.hpp. `squares` is the fast sum over the row.
Norm norm_of(double squares, std::span<const Columns> blocks, DType dtype, std::size_t row,
             std::size_t columns, double clip_norm) {
  const auto n = static_cast<double>(columns);
  const Norm fast{std::sqrt(squares), 0x1p-22 + n * 0x1p-53};
  const bool in_range = squares >= n * 0x1p-76 && squares < 0x1p100;
  const bool decided = std::abs(fast.value - clip_norm) > 0x1p-21 * clip_norm;
  if ((in_range && decided) || std::isnan(squares)) return fast;
  return {std::sqrt(exact_squares(blocks, dtype, row)), exact_error(columns)};
}

}  // namespace

std::size_t clip_sum(std::span<const GradBlock> blocks, std::size_t rows, DType dtype,
                     double clip_norm, double stability, float* total, double* norms, int threads,
                     Isa isa) {
  DPCOMM_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
               UsageError, "gradients of dtype ", name_of(dtype),
               ": give float32, bfloat16 or float16");
  check({std::span(&clip_norm, 1), stability}, 1);
  const std::size_t element = size_of(dtype);
  const std::vector<Columns> all = columns_of(blocks, element, total);
  std::size_t columns = 0, pieces = 0;
  for (const Columns& block : all) {
    columns += block.count;
    pieces += block.pieces();
  }
  std::fill_n(total, columns, 0.0f);

  const Loops loops = loops_of(isa);
  threads = static_cast<int>(std::clamp<std::size_t>(pieces, 1, threads));
  const auto for_columns_of = [&](int thread, const auto& work) {
    for (const Columns& block : all) {
      const Columns mine =
          block.part(pieces * thread / threads, pieces * (thread + 1) / threads, element);
      if (mine.count > 0) work(mine);
    }
  };
  const std::size_t row_bytes = std::max<std::size_t>(columns * element / threads, 1);
  const std::size_t group = std::clamp(kGroupBytes / row_bytes, kGroupRowsMin, kGroupRowsMax);
  std::vector<double> squares(group * pieces);
  std::vector<std::size_t> kept;  // the finite rows of the group before
  std::vector<float> factors;
  std::size_t nonfinite = 0;

  // A turn adds the group whose norms are known, while it is in the cache, and reads the next for
  // its squares: threads meet once a turn.
  for (std::size_t first = 0; first < rows || !kept.empty(); first += group) {
    const std::size_t some = first < rows ? std::min(group, rows - first) : 0;
    parallel(threads, [&](int thread) {
      for_columns_of(thread, [&](const Columns& mine) {
        const void* starts[kGroupRowsMax];
        for (std::size_t k = 0; k < kept.size(); ++k) starts[k] = mine.row(kept[k]);
        loops.add(dtype, starts, factors.data(), kept.size(), mine.total, mine.count);
      });
      for (std::size_t r = 0; r < some; ++r) {
        for_columns_of(thread, [&](const Columns& mine) {
          loops.squares(dtype, mine.row(first + r), mine.count, mine.piece,
                        &squares[r * pieces + mine.first_piece]);
        });
      }
    });
    kept.clear();
    factors.clear();
    for (std::size_t r = 0; r < some; ++r) {
      double sum = 0;
      for (std::size_t p = 0; p < pieces; ++p) sum += squares[r * pieces + p];
      const Norm norm = norm_of(sum, all, dtype, first + r, columns, clip_norm);
      norms[first + r] = norm.value;
      if (std::isfinite(norm.value)) {
        kept.push_back(first + r);
        factors.push_back(clip_factor(norm.value, norm.error, columns, clip_norm, stability));
      } else {
        ++nonfinite;
      }
    }
  }
  return nonfinite;
}

}  // namespace dpcomm
