#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace dpcomm {

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16, kInt64, kInt32, kUInt8 };
inline constexpr std::size_t kDTypes = 7;

std::size_t size_of(DType dtype);
std::string_view name_of(DType dtype);
DType dtype_of(std::string_view name);  // UsageError for an unknown name

// Storage types: arithmetic on them is done in float.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

inline float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
inline BFloat16 to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x0040u)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

float to_float(Float16 value);
Float16 to_float16(float value);  // rounds to nearest, ties to even

}  // namespace dpcomm
