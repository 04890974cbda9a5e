#pragma once

#include "privacy/clip_task.cuh"

// Where not even one row fits into the shared memory of all multiprocessors, three kernels read the
// gradients twice: the squares, the factors, the sum.

namespace dpcomm {

inline constexpr std::size_t kChunkColumns = 64 * kClipThreads;

// The columns [begin, end) of `block` that a chunk stands for, and where they stand in the row.
struct GradChunk {
  unsigned block = 0;
  std::size_t column = 0;
  std::size_t begin;
  std::size_t end;

  __device__ GradChunk(const ClipTask& task, std::size_t index) : begin(index * kChunkColumns) {
    while (begin >= task.block[block].columns) {
      begin -= (task.block[block].columns + kChunkColumns - 1) / kChunkColumns * kChunkColumns;
      column += task.block[block++].columns;
    }
    end = min(begin + kChunkColumns, task.block[block].columns);
  }
};

inline std::size_t chunks_of(std::span<const GradBlock> blocks) {
  std::size_t chunks = 0;
  for (const GradBlock& block : blocks)
    chunks += (block.columns + kChunkColumns - 1) / kChunkColumns;
  return chunks;
}

template <class T>
__global__ void __launch_bounds__(kClipThreads)
    squares_kernel(const __grid_constant__ ClipTask task, std::size_t chunks) {
  __shared__ double warp_squares[kClipWarps];
  const std::size_t row = blockIdx.x / chunks;
  const GradChunk chunk(task, blockIdx.x % chunks);
  const GradBlock& block = task.block[chunk.block];
  const T* numbers = static_cast<const T*>(block.data) + row * block.row_stride;
  double sum = 0;
#pragma unroll 8
  for (std::size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kClipThreads) {
    const double g = widen(numbers[i]);
    sum = ::fma(g, g, sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) warp_squares[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < kClipWarps; ++w) sum += warp_squares[w];
    task.squares[blockIdx.x] = sum;
  }
}

// A warp for each row.
static __global__ void __launch_bounds__(kClipThreads)
    factors_kernel(const __grid_constant__ ClipTask task, std::size_t chunks) {
  const std::size_t row = (std::size_t{blockIdx.x} * kClipThreads + threadIdx.x) / kWarpSize;
  if (row >= task.rows) return;
  const unsigned lane = threadIdx.x % kWarpSize;
  double sum = 0;
  for (std::size_t c = lane; c < chunks; c += kWarpSize) sum += task.squares[row * chunks + c];
  const double norm = ::sqrt(warp_sum(sum));
  if (lane == 0) {
    task.norms[row] = norm;
    task.factors[row] = factor_of(task, row, norm);
  }
}

template <class T>
__global__ void __launch_bounds__(kClipThreads)
    weighted_sum_kernel(const __grid_constant__ ClipTask task) {
  const GradChunk chunk(task, blockIdx.x);
  const GradBlock& block = task.block[chunk.block];
  for (std::size_t i = chunk.begin + threadIdx.x; i < chunk.end; i += kClipThreads) {
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

}  // namespace dpcomm
