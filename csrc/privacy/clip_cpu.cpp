#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
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

// Threads share the columns of long rows, by pieces. A piece's size depends on nothing but the
// number of columns, so that the order of each sum does not depend on the threads.
constexpr std::size_t kPieceMin = 1024;
constexpr std::size_t kPieceMax = 4096;
constexpr std::size_t kPiecesWanted = 32;

// Short rows are divided into stripes, each with a sum of its own, so that threads need not meet;
// how many there are does not depend on the threads either.
constexpr std::size_t kStripeColumnsMax = 32 << 10;
constexpr std::size_t kStripeRowsMin = 64;
constexpr std::size_t kStripesMax = 64;

// A group of rows stays in the cache from its norms to its sum: in a core's own cache where the
// rows are short, in the shared one where they are long.
constexpr std::size_t kGroupBytes = 384 << 10;
constexpr std::size_t kGroupRowsMin = 4;
constexpr std::size_t kGroupRowsMax = 64;

// Adjacent pieces of one block.
struct Columns {
  const std::byte* data;  // of row 0
  std::size_t row_bytes;
  std::size_t begin;  // counted over all blocks
  std::size_t count;
  std::size_t piece;
  std::size_t first_piece;  // counted over all blocks
  std::size_t layer = 0;    // whose norm bounds them

  std::size_t pieces() const { return (count + piece - 1) / piece; }
  const void* row(std::size_t r) const { return data + r * row_bytes; }

  // The part that lies in pieces [first, last) of all.
  Columns part(std::size_t first, std::size_t last, std::size_t element) const {
    const std::size_t from = std::clamp(first, first_piece, first_piece + pieces()) - first_piece;
    const std::size_t to = std::clamp(last, first_piece, first_piece + pieces()) - first_piece;
    Columns some = *this;
    some.data += from * piece * element;
    some.begin += from * piece;
    some.count = std::min(to * piece, count) - std::min(from * piece, count);
    some.first_piece += from;
    return some;
  }
};

// Blocks that are clipped together.
struct Layer {
  std::span<const Columns> blocks;
  double clip_norm;
  std::size_t columns = 0;
  std::size_t pieces = 0;
};

struct Loops {
  decltype(&sum_squares<1>) squares;
  decltype(&add_rows<1>) add;
};

Loops loops_of(Isa isa) {
  if (isa == Isa::kScalar) return {&sum_squares<1>, &add_rows<1>};
  return with_lanes(isa, [](auto lanes) { return Loops{&sum_squares<lanes>, &add_rows<lanes>}; });
}

struct Task {
  DType dtype;
  Loops loops;
  double stability;
  double* norms;
  std::vector<Columns> blocks = {};
  std::vector<Layer> layers = {};
  std::size_t columns = 0;
  std::size_t pieces = 0;
};

void lay_out(Task& task, std::span<const GradBlock> blocks, std::span<const double> clip_norms) {
  const std::size_t element = size_of(task.dtype);
  for (const GradBlock& block : blocks) {
    const std::size_t even = (block.columns / kPiecesWanted + 63) / 64 * 64;
    task.blocks.push_back({.data = static_cast<const std::byte*>(block.data),
                           .row_bytes = block.row_stride * element,
                           .begin = task.columns,
                           .count = block.columns,
                           .piece = std::clamp(even, kPieceMin, kPieceMax),
                           .first_piece = task.pieces});
    task.columns += block.columns;
    task.pieces += task.blocks.back().pieces();
  }
  const std::size_t together = clip_norms.size() == 1 ? blocks.size() : 1;
  for (std::size_t k = 0; k < clip_norms.size(); ++k) {
    const auto mine = std::span(task.blocks).subspan(k * together, together);
    Layer& layer = task.layers.emplace_back(Layer{mine, clip_norms[k]});
    for (Columns& block : mine) {
      block.layer = k;
      layer.columns += block.count;
      layer.pieces += block.pieces();
    }
  }
}

// The squares of floats, and of all that is smaller, are exact in double.
double exact_squares(const Layer& layer, DType dtype, std::size_t row) {
  double sum = 0;
  for (const Columns& block : layer.blocks) {
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
Norm norm_of(double squares, const Layer& layer, DType dtype, std::size_t row) {
  const auto n = static_cast<double>(layer.columns);
  const Norm fast{std::sqrt(squares), 0x1p-22 + n * 0x1p-53};
  const bool in_range = squares >= n * 0x1p-76 && squares < 0x1p100;
  const bool decided = std::abs(fast.value - layer.clip_norm) > 0x1p-21 * layer.clip_norm;
  if ((in_range && decided) || std::isnan(squares)) return fast;
  return {std::sqrt(exact_squares(layer, dtype, row)), exact_error(layer.columns)};
}

// Finite rows, with their factors in each layer.
struct Kept {
  std::vector<std::size_t> rows = {};
  std::vector<std::vector<float>> factors;  // [layers][rows]

  // Of `count` rows from `first` on with these squares, [count, pieces].
  void choose(const Task& task, std::size_t first, std::size_t count, const double* squares,
              bool write_norms) {
    rows.clear();
    for (std::vector<float>& layer : factors) layer.clear();
    std::vector<Norm> norms(task.layers.size());
    for (std::size_t row = first; row < first + count; ++row) {
      for (std::size_t k = 0; k < norms.size(); ++k) {
        const Layer& layer = task.layers[k];
        const double sum = std::accumulate(squares, squares + layer.pieces, 0.0);
        squares += layer.pieces;
        norms[k] = norm_of(sum, layer, task.dtype, row);
        if (write_norms) task.norms[row * norms.size() + k] = norms[k].value;
      }
      const auto finite = [](const Norm& norm) { return std::isfinite(norm.value); };
      if (!std::all_of(norms.begin(), norms.end(), finite)) continue;
      rows.push_back(row);
      for (std::size_t k = 0; k < norms.size(); ++k) {
        factors[k].push_back(clip_factor(norms[k].value, norms[k].error, task.layers[k].columns,
                                         task.layers[k].clip_norm, task.stability));
      }
    }
  }
};

// Adds the clipped rows [begin, end) to `total`. The threads share the columns. Returns how many
// rows were not finite.
std::size_t clip_rows(const Task& task, std::size_t begin, std::size_t end, float* total,
                      int threads) {
  const std::size_t element = size_of(task.dtype);
  const std::size_t row_bytes = std::max<std::size_t>(task.columns * element / threads, 1);
  const std::size_t group = std::clamp(kGroupBytes / row_bytes, kGroupRowsMin, kGroupRowsMax);
  std::vector<double> squares[2];
  for (std::vector<double>& some : squares) some.resize(std::min(group, end - begin) * task.pieces);
  std::size_t nonfinite = 0;
  Barrier measured(threads);

  // A turn adds the group whose norms are known, while it is in the cache, and reads the next for
  // its squares. All threads work out all factors, so that they meet but once a turn; who is ahead
  // writes the other squares.
  parallel(threads, [&](int thread) {
    std::vector<Columns> mine;
    for (const Columns& block : task.blocks) {
      const Columns part =
          block.part(task.pieces * thread / threads, task.pieces * (thread + 1) / threads, element);
      if (part.count > 0) mine.push_back(part);
    }
    Kept kept{.factors = std::vector<std::vector<float>>(task.layers.size())};
    for (std::size_t first = begin, turn = 0; first < end || !kept.rows.empty();
         first += group, ++turn) {
      for (const Columns& block : mine) {
        const void* starts[kGroupRowsMax];
        for (std::size_t k = 0; k < kept.rows.size(); ++k) starts[k] = block.row(kept.rows[k]);
        task.loops.add(task.dtype, starts, kept.factors[block.layer].data(), kept.rows.size(),
                       total + block.begin, block.count);
      }
      const std::size_t some = first < end ? std::min(group, end - first) : 0;
      double* const out = squares[turn % 2].data();
      for (std::size_t r = 0; r < some; ++r) {
        for (const Columns& block : mine) {
          task.loops.squares(task.dtype, block.row(first + r), block.count, block.piece,
                             out + r * task.pieces + block.first_piece);
        }
      }
      measured.wait();
      kept.choose(task, first, some, out, thread == 0);
      if (thread == 0) nonfinite += some - kept.rows.size();
    }
  });
  return nonfinite;
}

// The same in stripes of rows, which the threads share.
std::size_t clip_stripes(const Task& task, std::size_t rows, std::size_t stripes, float* total,
                         int threads) {
  std::vector<float> sums(stripes * task.columns);
  std::atomic<std::size_t> next{0}, nonfinite{0};
  parallel(threads, [&](int) {
    for (std::size_t s; (s = next++) < stripes;) {
      nonfinite += clip_rows(task, rows * s / stripes, rows * (s + 1) / stripes,
                             sums.data() + s * task.columns, 1);
    }
  });
  for (std::size_t s = 0; s < stripes; ++s) {
    for (std::size_t i = 0; i < task.columns; ++i) total[i] += sums[s * task.columns + i];
  }
  return nonfinite;
}

}  // namespace

std::size_t clip_sum(std::span<const GradBlock> blocks, std::size_t rows, DType dtype,
                     const ClipRule& rule, float* total, double* norms, int threads, Isa isa) {
  DPCOMM_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
               UsageError, "gradients of dtype ", name_of(dtype),
               ": give float32, bfloat16 or float16");
  check(rule, blocks.size());
  Task task{.dtype = dtype, .loops = loops_of(isa), .stability = rule.stability, .norms = norms};
  lay_out(task, blocks, rule.norms);
  std::fill_n(total, task.columns, 0.0f);
  const std::size_t stripes =
      task.columns <= kStripeColumnsMax ? std::min(rows / kStripeRowsMin, kStripesMax) : 1;
  const auto at_most = [threads](std::size_t units) {
    return static_cast<int>(std::clamp<std::size_t>(units, 1, threads));
  };
  if (stripes > 1) return clip_stripes(task, rows, stripes, total, at_most(stripes));
  return clip_rows(task, 0, rows, total, at_most(task.pieces));
}

}  // namespace dpcomm
