#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.hpp"
#include "base/stream.hpp"
#include "privacy/clip.hpp"

namespace dpcomm {

inline constexpr std::size_t kMaxGradBlocks = 1024;

// How clip_sum() divides its work on the current device. `teams` of `members` thread blocks share
// the rows; a member holds its slice of a team's rows in shared memory until their norms are known,
// so that each gradient is read once. With group_rows = 0 only the sum fits on chip, and a row is
// read a second time at once, from the L2 cache as far as it holds it. With members = 0 not even
// the sum fits, or the long rows are in several tensors: all is read twice.
struct ClipPlan {
  unsigned teams;
  unsigned members;
  unsigned group_rows;     // that a team takes at a time
  std::size_t slice;       // columns of a member
  std::size_t slot_bytes;  // of a row's slice in shared memory
  std::size_t shared_bytes;
  std::size_t workspace_bytes;
};

ClipPlan clip_plan(std::span<const GradBlock> blocks, std::size_t rows, DType dtype);

// clip.hpp's clip_sum(), by one norm, in the memory of the current device: the same bound, the sum
// within float32 rounding, the same bits in every call on one kind of device. `workspace`, aligned
// to 16 bytes, is the plan's. Returns once the kernels are in the stream; nothing is allocated and
// nothing waits, so that a CUDA graph can capture it. UsageError also for more than kMaxGradBlocks
// blocks.
//
// Where `blocks` are one of several layers, `sample_norms` [rows] are the norms over all of them: a
// sample that is not finite there adds nothing here. Else it is null.
void clip_sum(const ClipPlan& plan, std::span<const GradBlock> blocks, std::size_t rows,
              DType dtype, double clip_norm, double stability, float* total, double* norms,
              const double* sample_norms, std::int64_t* nonfinite, void* workspace, Stream stream);

}  // namespace dpcomm
