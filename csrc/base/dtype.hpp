#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/host_device.hpp"

namespace dpcomm {

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16, kInt64, kInt32, kUInt8 };
inline constexpr std::size_t kDTypes = 7;
inline constexpr std::array<std::size_t, kDTypes> kDTypeSizes = {8, 4, 2, 2, 8, 4, 1};
inline constexpr std::array<std::string_view, kDTypes> kDTypeNames = {
    "float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8"};

constexpr std::size_t size_of(DType dtype) { return kDTypeSizes[static_cast<std::size_t>(dtype)]; }
constexpr std::string_view name_of(DType dtype) {
  return kDTypeNames[static_cast<std::size_t>(dtype)];
}
DType dtype_of(std::string_view name);  // UsageError for an unknown name

// Storage types: arithmetic on them is done in float.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

DPCOMM_HD float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
DPCOMM_HD BFloat16 to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x0040u)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Both without a branch, so that loops over them become vectors.
DPCOMM_HD float to_float(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  // The bits are in a float's place; the product mends the bias, and subnormals with it.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity and NaN
  return std::bit_cast<float>(sign | special | std::bit_cast<std::uint32_t>(scaled));
}

// Rounds to nearest, ties to even.
DPCOMM_HD Float16 to_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Subnormal: adding 0.5 aligns the last place with float16's.
  const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(aligned) - 0x3f000000u;
  const std::uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  std::uint32_t rounded = magnitude < 0x38800000u ? subnormal : normal;
  rounded = magnitude >= 0x477ff000u ? 0x7c00u : rounded;
  rounded = magnitude > 0x7f800000u ? 0x7e00u : rounded;
  return {static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | rounded)};
}

}  // namespace dpcomm
