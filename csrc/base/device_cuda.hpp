#pragma once

#include "base/device.hpp"

namespace dpcomm {

inline constexpr std::size_t kMaxCudaParts = 256;

// device.hpp's functions on the memory of the current device, with the same bits. They return once
// the kernel is in the stream. UsageError for more than kMaxCudaParts parts.
void combine(DType dtype, RedOp op, std::span<const void* const> parts, void* out,
             std::size_t count, Stream stream);
void multiply(DType dtype, void* out, const void* data, std::size_t count, double factor,
              Stream stream);
void divide(DType dtype, void* data, std::size_t count, double divisor, Stream stream);

}  // namespace dpcomm
