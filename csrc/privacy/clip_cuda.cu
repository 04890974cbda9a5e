#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cmath>

#include "base/cuda.hpp"
#include "privacy/clip_cuda.hpp"
#include "privacy/clip_factor.hpp"
#include "privacy/scalar.hpp"

namespace dpcomm {
namespace {

constexpr unsigned kWarps = 16;  // of a thread block
constexpr unsigned kThreads = kWarps * kWarpSize;
constexpr unsigned kStages = 3;  // one group of rows arrives, one is measured, one is added
constexpr unsigned kMaxGroupRows = kWarps;
constexpr unsigned kVector = 16;               // bytes of the widest copy
constexpr std::size_t kChunk = 64 * kThreads;  // columns of a thread block where no row fits
constexpr unsigned kMinSlice = 1024;           // columns that are worth a thread block
constexpr unsigned kWantedRows = 4;            // in a group, so that barriers are few
constexpr std::size_t kStaticBytes = 4 << 10;  // more than the kernel's own shared variables

struct ClipTask {
  std::size_t rows;
  std::size_t columns;
  double clip_norm;
  ClipPlan plan;
  float* sums;        // [teams][columns]
  double* norms;      // [rows]
  double* squares;    // [rows][members], or [rows][chunks]
  float* factors;     // [rows], where the gradients are read twice
  unsigned* arrived;  // [teams][2]: members that have told the squares of even and odd groups
  unsigned block_count;
  GradBlock block[kMaxGradBlocks];
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(BFloat16 value) {
  return Scalar::from_bits(std::uint32_t{value.bits} << 16);
}
// A scaling by 2^112 moves the exponent, of subnormals too; infinities and NaNs keep theirs.
__device__ __forceinline__ float widen(Float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t rest = (value.bits & 0x7fffu) << 13;
  const float scaled = Scalar::from_bits(rest) * 0x1p112f;
  const std::uint32_t wide = rest < 0x0f800000u ? Scalar::bits(scaled) : rest | 0x7f800000u;
  return Scalar::from_bits(sign | wide);
}

__device__ __forceinline__ double warp_sum(double value) {
  for (int with = kWarpSize / 2; with > 0; with /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, with);
  }
  return value;
}

// Zero where the row is not finite.
__device__ __forceinline__ float factor_of(const ClipTask& task, double norm) {
  return norm < INFINITY ? clip_factor(norm, task.columns, task.clip_norm) : 0;
}

// A run of columns in one GradBlock.
template <class T>
struct Piece {
  const T* data;  // of row 0
  std::size_t row_stride;
  unsigned count;
  unsigned column;     // its first one, counted from the slice's
  unsigned slot_byte;  // where it stands in a row's slot
  const T* begin;      // of the GradBlock's memory
  const T* end;

  __device__ const T* row(std::size_t r) const { return data + r * row_stride; }
  // A copy in shared memory is as far from a multiple of 16 bytes as its source.
  __device__ unsigned shift(std::size_t r) const {
    return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(row(r)) % kVector);
  }
};

__host__ __device__ constexpr std::size_t slot_bytes_of(std::size_t bytes) {
  return (bytes + 2 * kVector - 2) / kVector * kVector;
}

// One thread block's columns [begin, end) of each row.
template <class T>
struct Slice {
  const ClipTask& task;
  std::size_t begin;
  std::size_t end;
  unsigned first_block = 0;
  std::size_t first_column = 0;  // of that block in the row

  __device__ Slice(const ClipTask& of, unsigned member)
      : task(of),
        begin(min(member * of.plan.slice, of.columns)),
        end(min(begin + of.plan.slice, of.columns)) {
    while (begin < end && first_column + task.block[first_block].columns <= begin) {
      first_column += task.block[first_block++].columns;
    }
  }

  __device__ unsigned count() const { return static_cast<unsigned>(end - begin); }

  template <class Function>
  __device__ void each_piece(Function function) const {
    std::size_t column = first_column;
    std::size_t slot_byte = 0;
    for (unsigned b = first_block; column < end; ++b) {
      const GradBlock& block = task.block[b];
      const std::size_t from = max(begin, column);
      const std::size_t to = min(end, column + block.columns);
      if (from < to) {
        const auto* data = static_cast<const T*>(block.data);
        function(Piece<T>{data + (from - column), block.row_stride,
                          static_cast<unsigned>(to - from), static_cast<unsigned>(from - begin),
                          static_cast<unsigned>(slot_byte), data,
                          data + (task.rows - 1) * block.row_stride + block.columns});
        slot_byte += slot_bytes_of((to - from) * sizeof(T));
      }
      column += block.columns;
    }
  }
};

// Starts to copy a piece of one row to its slot: vectors of 16 bytes, and at both edges words of 4,
// which may hold neighbours too; single elements only where the word would leave the memory.
template <class T>
__device__ void copy_piece(unsigned char* slot, const Piece<T>& piece, std::size_t row) {
  const unsigned begin = piece.shift(row);
  const unsigned end = begin + piece.count * unsigned{sizeof(T)};
  const unsigned head_end = min((begin + kVector - 1) / kVector * kVector, end);
  const unsigned tail = max(end / kVector * kVector, head_end);
  const auto* from = reinterpret_cast<const unsigned char*>(piece.row(row)) - begin;
  unsigned char* to = slot + piece.slot_byte;
  for (unsigned at = head_end + threadIdx.x * kVector; at < tail; at += kThreads * kVector) {
    __pipeline_memcpy_async(to + at, from + at, kVector);
  }
  if (threadIdx.x >= 8) return;
  const bool head = threadIdx.x < 4;
  const unsigned at = (head ? begin / 4 * 4 : tail) + threadIdx.x % 4 * 4;
  if (at >= (head ? head_end : end)) return;
  const auto* word = from + at;
  if (word >= reinterpret_cast<const unsigned char*>(piece.begin) &&
      word + 4 <= reinterpret_cast<const unsigned char*>(piece.end)) {
    __pipeline_memcpy_async(to + at, word, 4);
  } else {
    for (unsigned k = max(at, begin); k < min(at + 4, end); k += sizeof(T)) {
      *reinterpret_cast<T*>(to + k) = *reinterpret_cast<const T*>(from + k);
    }
  }
}

// The squares of a row's slice, summed over the warp; lane 0 has the sum.
template <class T>
__device__ double slice_squares(const Slice<T>& slice, const unsigned char* slot, std::size_t row) {
  double sum = 0;
  slice.each_piece([&](const Piece<T>& piece) {
    const auto* numbers = reinterpret_cast<const T*>(slot + piece.slot_byte + piece.shift(row));
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < piece.count; i += kThreads) {
      const double g = widen(numbers[i]);
      sum = ::fma(g, g, sum);
    }
  });
  return warp_sum(sum);
}

// sums[j] += factors[r] * row[r][j], four rows at a time and in their order.
template <class T>
__device__ void add_rows(const Slice<T>& slice, const unsigned char* stage, std::size_t first,
                         unsigned rows, const float* factors, float* sums) {
  constexpr unsigned kTogether = 4;
  const std::size_t slot_bytes = slice.task.plan.slot_bytes;
  slice.each_piece([&](const Piece<T>& piece) {
    for (unsigned r = 0; r < rows; r += kTogether) {
      const T* numbers[kTogether];
      float factor[kTogether];
      for (unsigned k = 0; k < kTogether; ++k) {
        const unsigned row = min(r + k, rows - 1);
        numbers[k] = reinterpret_cast<const T*>(stage + row * slot_bytes + piece.slot_byte +
                                                piece.shift(first + row));
        factor[k] = r + k < rows ? factors[row] : 0;
      }
      // Several columns at a time, for their loads to overlap.
      for (unsigned i = threadIdx.x; i < piece.count; i += kTogether * kThreads) {
        float sum[kTogether];
        for (unsigned c = 0; c < kTogether; ++c) {
          const unsigned column = i + c * kThreads;
          sum[c] = column < piece.count ? sums[piece.column + column] : 0;
        }
        for (unsigned k = 0; k < kTogether; ++k) {
          if (factor[k] == 0) continue;  // also a row that is not finite
          for (unsigned c = 0; c < kTogether; ++c) {
            const unsigned column = min(i + c * kThreads, piece.count - 1);
            sum[c] = ::fmaf(factor[k], widen(numbers[k][column]), sum[c]);
          }
        }
        for (unsigned c = 0; c < kTogether; ++c) {
          const unsigned column = i + c * kThreads;
          if (column < piece.count) sums[piece.column + column] = sum[c];
        }
      }
    }
  });
}

// One read of the gradients. The groups of a team's rows pass through three stages of shared
// memory: while one arrives, the squares of the one before it are summed and told to the team, and
// the one before that, whose norms the whole team has told by then, is added to the sum.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    clip_sum_kernel(const __grid_constant__ ClipTask task) {
  const ClipPlan& plan = task.plan;
  const unsigned team = blockIdx.x / plan.members;
  const unsigned member = blockIdx.x % plan.members;
  const unsigned warp = threadIdx.x / kWarpSize;
  const unsigned lane = threadIdx.x % kWarpSize;
  const Slice<T> slice(task, member);
  const std::size_t row_begin = task.rows * team / plan.teams;
  const std::size_t row_end = task.rows * (team + 1) / plan.teams;
  const std::size_t groups = (row_end - row_begin + plan.group_rows - 1) / plan.group_rows;
  unsigned* arrived = task.arrived + 2 * team;

  auto* stages = dynamic_shared<unsigned char>();
  const std::size_t stage_bytes = plan.group_rows * plan.slot_bytes;
  auto* sums = reinterpret_cast<float*>(stages + kStages * stage_bytes);
  __shared__ double warp_squares[kMaxGroupRows][kWarps];
  __shared__ float factors[kMaxGroupRows];

  const auto stage_of = [&](std::size_t group) { return stages + group % kStages * stage_bytes; };
  const auto first_of = [&](std::size_t group) { return row_begin + group * plan.group_rows; };
  const auto rows_of = [&](std::size_t group) {
    return static_cast<unsigned>(
        min(static_cast<std::size_t>(plan.group_rows), row_end - first_of(group)));
  };
  const auto start = [&](std::size_t group) {
    if (group < groups) {
      for (unsigned r = 0; r < rows_of(group); ++r) {
        slice.each_piece([&](const Piece<T>& piece) {
          copy_piece(stage_of(group) + r * plan.slot_bytes, piece, first_of(group) + r);
        });
      }
    }
    __pipeline_commit();
  };

  for (unsigned i = threadIdx.x; i < slice.count(); i += kThreads) sums[i] = 0;
  for (std::size_t group = 0; group + 1 < kStages; ++group) start(group);
  for (std::size_t group = 0; group <= groups; ++group) {
    if (group < groups) {
      __pipeline_wait_prior(kStages - 2);
      __syncthreads();
      for (unsigned r = 0; r < rows_of(group); ++r) {
        const double sum =
            slice_squares(slice, stage_of(group) + r * plan.slot_bytes, first_of(group) + r);
        if (lane == 0) warp_squares[r][warp] = sum;
      }
      __syncthreads();
      if (threadIdx.x < rows_of(group)) {
        double sum = 0;
        for (unsigned w = 0; w < kWarps; ++w) sum += warp_squares[threadIdx.x][w];
        task.squares[(first_of(group) + threadIdx.x) * plan.members + member] = sum;
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        __nv_atomic_fetch_add(arrived + group % 2, 1u, __NV_ATOMIC_RELEASE,
                              __NV_THREAD_SCOPE_DEVICE);
      }
    }
    if (group > 0) {
      const std::size_t ready = group - 1;
      if (threadIdx.x == 0) {
        // No member is more than one group ahead, hence two counters.
        unsigned* even_or_odd = arrived + ready % 2;
        while (__nv_atomic_load_n(even_or_odd, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE) <
               (ready / 2 + 1) * plan.members) {
        }
      }
      __syncthreads();
      if (warp < rows_of(ready)) {
        const std::size_t row = first_of(ready) + warp;
        double sum = 0;
        for (unsigned m = lane; m < plan.members; m += kWarpSize) {
          sum += task.squares[row * plan.members + m];
        }
        sum = warp_sum(sum);
        if (lane == 0) {
          const double norm = ::sqrt(sum);
          if (member == 0) task.norms[row] = norm;
          factors[warp] = factor_of(task, norm);
        }
      }
      __syncthreads();
      add_rows(slice, stage_of(ready), first_of(ready), rows_of(ready), factors, sums);
      __syncthreads();
    }
    start(group + kStages - 1);
  }
  float* out = task.sums + team * task.columns + slice.begin;
  for (unsigned i = threadIdx.x; i < slice.count(); i += kThreads) out[i] = sums[i];
}

// Where not even one row fits into the shared memory of all multiprocessors, three kernels read the
// gradients twice: the squares, the factors, the sum.

// The columns [begin, end) of `block` that a chunk stands for, and where they stand in the row.
struct Chunk {
  unsigned block = 0;
  std::size_t column = 0;
  std::size_t begin;
  std::size_t end;

  __device__ Chunk(const ClipTask& task, std::size_t index) : begin(index * kChunk) {
    while (begin >= task.block[block].columns) {
      begin -= (task.block[block].columns + kChunk - 1) / kChunk * kChunk;
      column += task.block[block++].columns;
    }
    end = min(begin + kChunk, task.block[block].columns);
  }
};

std::size_t chunks_of(std::span<const GradBlock> blocks) {
  std::size_t chunks = 0;
  for (const GradBlock& block : blocks) chunks += (block.columns + kChunk - 1) / kChunk;
  return chunks;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const __grid_constant__ ClipTask task, std::size_t chunks) {
  __shared__ double warp_squares[kWarps];
  const std::size_t row = blockIdx.x / chunks;
  const Chunk chunk(task, blockIdx.x % chunks);
  const GradBlock& block = task.block[chunk.block];
  const T* numbers = static_cast<const T*>(block.data) + row * block.row_stride;
  double sum = 0;
#pragma unroll 8
  for (std::size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kThreads) {
    const double g = widen(numbers[i]);
    sum = ::fma(g, g, sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) warp_squares[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < kWarps; ++w) sum += warp_squares[w];
    task.squares[blockIdx.x] = sum;
  }
}

// A warp for each row.
__global__ void __launch_bounds__(kThreads)
    factors_kernel(const __grid_constant__ ClipTask task, std::size_t chunks) {
  const std::size_t row = (std::size_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  if (row >= task.rows) return;
  const unsigned lane = threadIdx.x % kWarpSize;
  double sum = 0;
  for (std::size_t c = lane; c < chunks; c += kWarpSize) sum += task.squares[row * chunks + c];
  const double norm = ::sqrt(warp_sum(sum));
  if (lane == 0) {
    task.norms[row] = norm;
    task.factors[row] = factor_of(task, norm);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    weighted_sum_kernel(const __grid_constant__ ClipTask task) {
  const Chunk chunk(task, blockIdx.x);
  const GradBlock& block = task.block[chunk.block];
  for (std::size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kThreads) {
    const T* number = static_cast<const T*>(block.data) + i;
    float sum = 0;
#pragma unroll 8
    for (std::size_t row = 0; row < task.rows; ++row) {
      const float g = widen(number[row * block.row_stride]);
      const float factor = task.factors[row];
      if (factor != 0) sum = ::fmaf(factor, g, sum);
    }
    task.sums[chunk.column + i] = sum;
  }
}

// Adds the teams' sums in their order, and counts the rows that are not finite.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ ClipTask task, float* total, std::int64_t* nonfinite) {
  if (task.sums != total) {
    const std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i < task.columns) {
      float sum = task.sums[i];
      for (unsigned team = 1; team < task.plan.teams; ++team) {
        sum += task.sums[team * task.columns + i];
      }
      total[i] = sum;
    }
  }
  if (blockIdx.x > 0) return;
  __shared__ double counts[kWarps];
  double count = 0;
  for (std::size_t row = threadIdx.x; row < task.rows; row += kThreads) {
    if (!(task.norms[row] < INFINITY)) ++count;
  }
  count = warp_sum(count);
  if (threadIdx.x % kWarpSize == 0) counts[threadIdx.x / kWarpSize] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < kWarps; ++w) count += counts[w];
    *nonfinite = static_cast<std::int64_t>(count);
  }
}

unsigned blocks_for(std::size_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

template <class T>
void run(const ClipTask& task, std::span<const GradBlock> blocks, Stream stream) {
  if (task.plan.members > 0) {
    DPCOMM_CUDA_CHECK(cudaFuncSetAttribute(clip_sum_kernel<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(task.plan.shared_bytes)));
    const Grid grid = {.blocks = task.plan.teams * task.plan.members,
                       .threads = kThreads,
                       .shared_bytes = task.plan.shared_bytes,
                       .cooperative = task.plan.members > 1};
    launch(grid, stream, clip_sum_kernel<T>, task);
  } else {
    const std::size_t chunks = chunks_of(blocks);
    const auto pieces = static_cast<unsigned>(task.rows * chunks);
    if (pieces > 0) launch({pieces, kThreads}, stream, squares_kernel<T>, task, chunks);
    if (task.rows > 0) {
      launch({blocks_for(task.rows * kWarpSize), kThreads}, stream, factors_kernel, task, chunks);
    }
    launch({static_cast<unsigned>(chunks), kThreads}, stream, weighted_sum_kernel<T>, task);
  }
}

// The most bytes that any member's slice of a row takes in shared memory.
std::size_t slot_bytes(std::span<const GradBlock> blocks, std::size_t slice, std::size_t element) {
  std::size_t most = 0;
  std::size_t bytes = 0;
  std::size_t left = slice;
  for (const GradBlock& block : blocks) {
    for (std::size_t rest = block.columns; rest > 0;) {
      const std::size_t count = std::min(rest, left);
      bytes += slot_bytes_of(count * element);
      most = std::max(most, bytes);
      rest -= count;
      left -= count;
      if (left == 0) bytes = 0, left = slice;
    }
  }
  return most;
}

template <class T>
T* take(std::byte*& workspace, std::size_t count) {
  auto* taken = reinterpret_cast<T*>(workspace);
  workspace += (count * sizeof(T) + kVector - 1) / kVector * kVector;
  return taken;
}

// Lays the arrays of the workspace out; from address 0, to learn its size.
std::size_t lay_out(ClipTask& task, std::span<const GradBlock> blocks, std::byte* workspace) {
  const std::byte* begin = workspace;
  const ClipPlan& plan = task.plan;
  const bool once = plan.members > 0;
  task.squares = take<double>(workspace, task.rows * (once ? plan.members : chunks_of(blocks)));
  task.arrived = take<unsigned>(workspace, 2 * plan.teams);
  task.factors = take<float>(workspace, once ? 0 : task.rows);
  if (plan.teams > 1) task.sums = take<float>(workspace, plan.teams * task.columns);
  return static_cast<std::size_t>(workspace - begin);
}

std::size_t columns_of(std::span<const GradBlock> blocks) {
  std::size_t columns = 0;
  for (const GradBlock& block : blocks) columns += block.columns;
  return columns;
}

}  // namespace

ClipPlan clip_plan(std::span<const GradBlock> blocks, std::size_t rows, DType dtype) {
  const std::size_t columns = columns_of(blocks);
  const auto processors = static_cast<unsigned>(device_attribute(cudaDevAttrMultiProcessorCount));
  const auto budget =
      static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) -
      kStaticBytes;
  ClipPlan plan = {.teams = 1};
  // How many rows a group has where `members` share each.
  const auto divide = [&](unsigned members) {
    plan.members = members;
    plan.slice = (columns + members - 1) / members;
    plan.slot_bytes = slot_bytes(blocks, plan.slice, size_of(dtype));
    const std::size_t fixed = plan.slice * sizeof(float);
    const std::size_t stages = kStages * std::max<std::size_t>(plan.slot_bytes, 1);
    const std::size_t fits = fixed < budget ? (budget - fixed) / stages : 0;
    plan.group_rows = static_cast<unsigned>(std::min<std::size_t>(fits, kMaxGroupRows));
    plan.shared_bytes = kStages * plan.group_rows * plan.slot_bytes + fixed;
    return plan.group_rows;
  };
  for (unsigned members = 1; members <= processors; ++members) {
    if (divide(members) >= kWantedRows) break;
  }
  if (plan.group_rows == 0) {
    plan.members = 0;
  } else {
    const auto most = static_cast<unsigned>(
        std::min<std::size_t>(processors, (columns + kMinSlice - 1) / kMinSlice));
    plan.teams = static_cast<unsigned>(std::clamp<std::size_t>(rows, 1, processors / plan.members));
    divide(std::max(plan.members, std::min(processors / plan.teams, most)));
  }
  ClipTask task = {.rows = rows, .columns = columns, .plan = plan};
  plan.workspace_bytes = lay_out(task, blocks, nullptr);
  return plan;
}

void clip_sum(const ClipPlan& plan, std::span<const GradBlock> blocks, std::size_t rows,
              DType dtype, double clip_norm, float* total, double* norms, std::int64_t* nonfinite,
              void* workspace, Stream stream) {
  DPCOMM_CHECK(clip_norm > 0 && std::isfinite(clip_norm), UsageError, "clip norm ", clip_norm,
               ": give a positive number");
  DPCOMM_CHECK(blocks.size() <= kMaxGradBlocks, UsageError, blocks.size(),
               " gradient tensors: concatenate them to at most ", kMaxGradBlocks);
  ClipTask task = {.rows = rows,
                   .columns = columns_of(blocks),
                   .clip_norm = clip_norm,
                   .plan = plan,
                   .sums = total,
                   .norms = norms,
                   .block_count = static_cast<unsigned>(blocks.size())};
  std::copy(blocks.begin(), blocks.end(), task.block);
  lay_out(task, blocks, static_cast<std::byte*>(workspace));
  DPCOMM_CUDA_CHECK(cudaMemsetAsync(task.arrived, 0, 2 * plan.teams * sizeof(unsigned), stream));
  switch (dtype) {
    case DType::kFloat32:
      run<float>(task, blocks, stream);
      break;
    case DType::kBFloat16:
      run<BFloat16>(task, blocks, stream);
      break;
    case DType::kFloat16:
      run<Float16>(task, blocks, stream);
      break;
    default:
      throw UsageError(
          concat("gradients of dtype ", name_of(dtype), ": give float32, bfloat16 or float16"));
  }
  const unsigned finish = task.sums == total ? 1 : blocks_for(task.columns);
  launch({std::max(finish, 1u), kThreads}, stream, finish_kernel, task, total, nonfinite);
}

}  // namespace dpcomm
