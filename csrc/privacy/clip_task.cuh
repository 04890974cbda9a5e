#pragma once

#include <cmath>

#include "base/arithmetic.hpp"
#include "base/cuda.hpp"
#include "privacy/clip_cuda.hpp"
#include "privacy/clip_factor.hpp"

// What all kernels of clip_cuda.cu share.

namespace dpcomm {

inline constexpr unsigned kClipWarps = 16;  // of a thread block
inline constexpr unsigned kClipThreads = kClipWarps * kWarpSize;

struct ClipTask {
  std::size_t rows;
  std::size_t columns;
  double clip_norm;
  double stability;
  ClipPlan plan;
  float* sums;                 // [teams][columns]
  double* norms;               // [rows]
  const double* sample_norms;  // [rows], or null
  double* squares;             // [rows][members], or [rows][chunks]
  float* factors;              // [rows], where the gradients are read twice
  unsigned* arrived;  // [teams][2]: members that have told the squares of even and odd groups
  unsigned block_count;
  GradBlock block[kMaxGradBlocks];
};

template <class T>
__device__ __forceinline__ float widen(T value) {
  return Wide<T>::load(value);
}

__device__ __forceinline__ double warp_sum(double value) {
  for (int with = kWarpSize / 2; with > 0; with /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, with);
  }
  return value;
}

// Zero where the row, or the sample that it is a part of, is not finite.
__device__ __forceinline__ float factor_of(const ClipTask& task, std::size_t row, double norm) {
  if (task.sample_norms != nullptr && !(task.sample_norms[row] < INFINITY)) return 0;
  return norm < INFINITY ? clip_factor(norm, task.columns, task.clip_norm, task.stability) : 0;
}

}  // namespace dpcomm
