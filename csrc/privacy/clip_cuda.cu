#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cmath>

#include "base/cuda.hpp"
#include "privacy/clip_cached.cuh"
#include "privacy/clip_cuda.hpp"
#include "privacy/clip_rule.hpp"
#include "privacy/clip_slice.cuh"
#include "privacy/clip_task.cuh"
#include "privacy/clip_twice.cuh"

namespace dpcomm {
namespace {

constexpr unsigned kStages = 3;  // one group of rows arrives, one is measured, one is added
constexpr unsigned kMaxGroupRows = kClipWarps;
constexpr unsigned kMinSlice = 1024;           // columns that are worth a thread block
constexpr unsigned kWantedRows = 4;            // in a group, so that barriers are few
constexpr std::size_t kStaticBytes = 4 << 10;  // more than the kernel's own shared variables

// The squares of a row's slice, summed over the warp; lane 0 has the sum.
template <class T>
__device__ double slice_squares(const GradSlice<T>& slice, const unsigned char* slot,
                                std::size_t row) {
  double sum = 0;
  slice.each_piece([&](const GradPiece<T>& piece) {
    const auto* numbers = reinterpret_cast<const T*>(slot + piece.slot_byte + piece.shift(row));
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < piece.count; i += kClipThreads) {
      const double g = widen(numbers[i]);
      sum = ::fma(g, g, sum);
    }
  });
  return warp_sum(sum);
}

// sums[j] += factors[r] * row[r][j], four rows at a time and in their order.
template <class T>
__device__ void add_rows(const GradSlice<T>& slice, const unsigned char* stage, std::size_t first,
                         unsigned rows, const float* factors, float* sums) {
  constexpr unsigned kTogether = 4;
  const std::size_t slot_bytes = slice.task.plan.slot_bytes;
  slice.each_piece([&](const GradPiece<T>& piece) {
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
      for (unsigned i = threadIdx.x; i < piece.count; i += kTogether * kClipThreads) {
        float sum[kTogether];
        for (unsigned c = 0; c < kTogether; ++c) {
          const unsigned column = i + c * kClipThreads;
          sum[c] = column < piece.count ? sums[piece.column + column] : 0;
        }
        for (unsigned k = 0; k < kTogether; ++k) {
          if (factor[k] == 0) continue;  // also a row that is not finite
          for (unsigned c = 0; c < kTogether; ++c) {
            const unsigned column = min(i + c * kClipThreads, piece.count - 1);
            sum[c] = ::fmaf(factor[k], widen(numbers[k][column]), sum[c]);
          }
        }
        for (unsigned c = 0; c < kTogether; ++c) {
          const unsigned column = i + c * kClipThreads;
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
__global__ void __launch_bounds__(kClipThreads, 1)
    clip_sum_kernel(const __grid_constant__ ClipTask task) {
  const ClipPlan& plan = task.plan;
  const unsigned team = blockIdx.x / plan.members;
  const unsigned member = blockIdx.x % plan.members;
  const unsigned warp = threadIdx.x / kWarpSize;
  const unsigned lane = threadIdx.x % kWarpSize;
  const GradSlice<T> slice(task, member);
  const std::size_t row_begin = task.rows * team / plan.teams;
  const std::size_t row_end = task.rows * (team + 1) / plan.teams;
  const std::size_t groups = (row_end - row_begin + plan.group_rows - 1) / plan.group_rows;
  unsigned* arrived = task.arrived + 2 * team;

  auto* stages = dynamic_shared<unsigned char>();
  const std::size_t stage_bytes = plan.group_rows * plan.slot_bytes;
  auto* sums = reinterpret_cast<float*>(stages + kStages * stage_bytes);
  __shared__ double warp_squares[kMaxGroupRows][kClipWarps];
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
        slice.each_piece([&](const GradPiece<T>& piece) {
          copy_piece(stage_of(group) + r * plan.slot_bytes, piece, first_of(group) + r);
        });
      }
    }
    __pipeline_commit();
  };

  for (unsigned i = threadIdx.x; i < slice.count(); i += kClipThreads) sums[i] = 0;
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
        for (unsigned w = 0; w < kClipWarps; ++w) sum += warp_squares[threadIdx.x][w];
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
          factors[warp] = factor_of(task, row, norm);
        }
      }
      __syncthreads();
      add_rows(slice, stage_of(ready), first_of(ready), rows_of(ready), factors, sums);
      __syncthreads();
    }
    start(group + kStages - 1);
  }
  float* out = task.sums + team * task.columns + slice.begin;
  for (unsigned i = threadIdx.x; i < slice.count(); i += kClipThreads) out[i] = sums[i];
}

// Adds the teams' sums in their order, and counts the rows that are not finite.
__global__ void __launch_bounds__(kClipThreads)
    finish_kernel(const __grid_constant__ ClipTask task, float* total, std::int64_t* nonfinite) {
  if (task.sums != total) {
    const std::size_t i = std::size_t{blockIdx.x} * kClipThreads + threadIdx.x;
    if (i < task.columns) {
      float sum = task.sums[i];
      for (unsigned team = 1; team < task.plan.teams; ++team) {
        sum += task.sums[team * task.columns + i];
      }
      total[i] = sum;
    }
  }
  if (blockIdx.x > 0) return;
  __shared__ double counts[kClipWarps];
  double count = 0;
  for (std::size_t row = threadIdx.x; row < task.rows; row += kClipThreads) {
    if (!(task.norms[row] < INFINITY)) ++count;
  }
  count = warp_sum(count);
  if (threadIdx.x % kWarpSize == 0) counts[threadIdx.x / kWarpSize] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < kClipWarps; ++w) count += counts[w];
    *nonfinite = static_cast<std::int64_t>(count);
  }
}

unsigned blocks_for(std::size_t threads) {
  return static_cast<unsigned>((threads + kClipThreads - 1) / kClipThreads);
}

template <class T>
void run(const ClipTask& task, std::span<const GradBlock> blocks, Stream stream) {
  if (task.plan.members > 0) {
    const auto kernel = task.plan.group_rows > 0 ? clip_sum_kernel<T> : cached_clip_kernel<T>;
    DPCOMM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(task.plan.shared_bytes)));
    const Grid grid = {.blocks = task.plan.teams * task.plan.members,
                       .threads = kClipThreads,
                       .shared_bytes = task.plan.shared_bytes,
                       .cooperative = task.plan.members > 1};
    launch(grid, stream, kernel, task);
  } else {
    const std::size_t chunks = chunks_of(blocks);
    const auto pieces = static_cast<unsigned>(task.rows * chunks);
    if (pieces > 0) launch({pieces, kClipThreads}, stream, squares_kernel<T>, task, chunks);
    if (task.rows > 0) {
      launch({blocks_for(task.rows * kWarpSize), kClipThreads}, stream, factors_kernel, task,
             chunks);
    }
    launch({static_cast<unsigned>(chunks), kClipThreads}, stream, weighted_sum_kernel<T>, task);
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
    plan.members = processors;
    plan.slice = (columns + processors - 1) / processors;
    plan.shared_bytes = plan.slice > kHeldColumns ? (plan.slice - kHeldColumns) * sizeof(float) : 0;
    if (blocks.size() > 1 || rows == 0 || plan.shared_bytes > budget) plan.members = 0;
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
              DType dtype, double clip_norm, double stability, float* total, double* norms,
              const double* sample_norms, std::int64_t* nonfinite, void* workspace, Stream stream) {
  check({std::span(&clip_norm, 1), stability}, 1);
  DPCOMM_CHECK(blocks.size() <= kMaxGradBlocks, UsageError, blocks.size(),
               " gradient tensors: concatenate them to at most ", kMaxGradBlocks);
  ClipTask task = {.rows = rows,
                   .columns = columns_of(blocks),
                   .clip_norm = clip_norm,
                   .stability = stability,
                   .plan = plan,
                   .sums = total,
                   .norms = norms,
                   .sample_norms = sample_norms,
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
  launch({std::max(finish, 1u), kClipThreads}, stream, finish_kernel, task, total, nonfinite);
}

}  // namespace dpcomm
