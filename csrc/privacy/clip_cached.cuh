#pragma once

#include "privacy/clip_task.cuh"

// Where all multiprocessors together have room for the sum, but not for a row beside it: one flat
// buffer of very long rows.

namespace dpcomm {

inline constexpr unsigned kHeld = 40;  // sums in the registers of a thread
inline constexpr unsigned kAhead = 8;  // columns of a thread whose loads are under way together
inline constexpr unsigned kHeldColumns = kHeld * kClipThreads;

// While the squares of one row are summed, the row before it, whose norm all blocks have told, is
// added: its second read, from the L2 cache. Odd rows go backwards, so that what was read last, and
// is there most surely, comes first.
template <class T>
__global__ void __launch_bounds__(kClipThreads, 1)
    cached_clip_kernel(const __grid_constant__ ClipTask task) {
  const unsigned members = task.plan.members;
  const unsigned warp = threadIdx.x / kWarpSize;
  const unsigned lane = threadIdx.x % kWarpSize;
  const std::size_t begin = min(blockIdx.x * task.plan.slice, task.columns);
  const auto count = static_cast<unsigned>(min(task.plan.slice, task.columns - begin));
  const auto row_of = [&](std::size_t row) {
    return static_cast<const T*>(task.block[0].data) + row * task.block[0].row_stride + begin;
  };
  auto* rest = dynamic_shared<float>();  // the sums behind those in registers
  __shared__ double warp_squares[kClipWarps];
  __shared__ float told_factor;

  float held[kHeld];
#pragma unroll
  for (unsigned k = 0; k < kHeld; ++k) held[k] = 0;
  for (unsigned i = threadIdx.x; i + kHeldColumns < count; i += kClipThreads) rest[i] = 0;

  float factor = 0;  // of the row before
  for (std::size_t row = 0; row <= task.rows; ++row) {
    const bool measures = row < task.rows;
    const T* measured = row_of(measures ? row : 0);
    const T* added = row_of(row > 0 ? row - 1 : 0);
    double squares = 0;
    const auto group = [&](unsigned first, auto sum_of) {
      float square[kAhead];
      float addend[kAhead];
#pragma unroll
      for (unsigned k = 0; k < kAhead; ++k) {
        const unsigned column = first + k * kClipThreads;
        square[k] = measures && column < count ? widen(measured[column]) : 0;
        addend[k] = factor != 0 && column < count ? widen(added[column]) : 0;
      }
#pragma unroll
      for (unsigned k = 0; k < kAhead; ++k) {
        squares = ::fma(double{square[k]}, double{square[k]}, squares);
        if (factor != 0 && first + k * kClipThreads < count) {  // also a row that is not finite
          sum_of(k) = ::fmaf(factor, addend[k], sum_of(k));
        }
      }
    };
    const auto group_held = [&](unsigned g) {
      group(g * kAhead * kClipThreads + threadIdx.x,
            [&](unsigned k) -> float& { return held[g * kAhead + k]; });
    };
    const auto group_rest = [&](unsigned g) {
      const unsigned first = g * kAhead * kClipThreads + threadIdx.x;
      group(kHeldColumns + first,
            [&](unsigned k) -> float& { return rest[first + k * kClipThreads]; });
    };
    const unsigned behind = count > kHeldColumns ? count - kHeldColumns : 0;
    const unsigned rest_groups = (behind + kAhead * kClipThreads - 1) / (kAhead * kClipThreads);
    if (row % 2 == 0) {
#pragma unroll
      for (unsigned g = 0; g < kHeld / kAhead; ++g) group_held(g);
      for (unsigned g = 0; g < rest_groups; ++g) group_rest(g);
    } else {
      for (unsigned g = rest_groups; g > 0; --g) group_rest(g - 1);
#pragma unroll
      for (unsigned g = kHeld / kAhead; g > 0; --g) group_held(g - 1);
    }
    if (!measures) break;

    squares = warp_sum(squares);
    if (lane == 0) warp_squares[warp] = squares;
    __syncthreads();
    if (threadIdx.x == 0) {
      double sum = 0;
      for (unsigned w = 0; w < kClipWarps; ++w) sum += warp_squares[w];
      task.squares[row * members + blockIdx.x] = sum;
      __nv_atomic_fetch_add(task.arrived, 1u, __NV_ATOMIC_RELEASE, __NV_THREAD_SCOPE_DEVICE);
      while (__nv_atomic_load_n(task.arrived, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE) <
             (row + 1) * members) {
      }
    }
    __syncthreads();
    if (warp == 0) {
      double sum = 0;
      for (unsigned m = lane; m < members; m += kWarpSize) sum += task.squares[row * members + m];
      sum = warp_sum(sum);
      if (lane == 0) {
        const double norm = ::sqrt(sum);
        if (blockIdx.x == 0) task.norms[row] = norm;
        told_factor = factor_of(task, row, norm);
      }
    }
    __syncthreads();
    factor = told_factor;
  }
  float* out = task.sums + begin;
#pragma unroll
  for (unsigned k = 0; k < kHeld; ++k) {
    const unsigned column = k * kClipThreads + threadIdx.x;
    if (column < count) out[column] = held[k];
  }
  for (unsigned i = threadIdx.x; i + kHeldColumns < count; i += kClipThreads) {
    out[kHeldColumns + i] = rest[i];
  }
}

}  // namespace dpcomm
