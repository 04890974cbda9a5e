#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/dtype.hpp"

// What collectives do to memory besides moving it. Here for the CPU.

namespace dpcomm {

enum class RedOp : std::uint8_t { kSum, kMean, kMax, kMin };

std::string_view name_of(RedOp op);
RedOp redop_of(std::string_view name);  // UsageError for an unknown name

// out[i] = parts[0][i] op parts[1][i] op …, in this order, for every `out`. The 16-bit types are
// combined in float and rounded once; kMean adds, and divide() comes when all parts are in; a NaN
// wins in kMax and kMin. An `out` may be one of the parts, but not overlap one otherwise. With
// `scales`, one a part, what is added is each part as multiply() makes it.
void combine(DType dtype, RedOp op, std::span<const void* const> parts, std::span<void* const> outs,
             std::size_t count, std::span<const double> scales = {});

// out[i] = factor * data[i], for the floating-point types: the factor rounded to float (to double
// for kFloat64), the product rounded to the type. `out` may equal `data`; a factor of 1 copies.
void multiply(DType dtype, void* out, const void* data, std::size_t count, double factor);

// data[i] /= divisor, for the floating-point types.
void divide(DType dtype, void* data, std::size_t count, double divisor);

}  // namespace dpcomm
