#pragma once

#include <cmath>

#include "base/cuda.hpp"
#include "privacy/clip_cuda.hpp"
#include "privacy/clip_factor.hpp"
#include "privacy/scalar.hpp"

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

// Zero where the row, or the sample that it is a part of, is not finite.
__device__ __forceinline__ float factor_of(const ClipTask& task, std::size_t row, double norm) {
  if (task.sample_norms != nullptr && !(task.sample_norms[row] < INFINITY)) return 0;
  return norm < INFINITY ? clip_factor(norm, task.columns, task.clip_norm, task.stability) : 0;
}

}  // namespace dpcomm
