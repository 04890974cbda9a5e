#include "base/dtype.hpp"

#include <array>

#include "base/error.hpp"

namespace dpcomm {
namespace {

struct Entry {
  DType dtype;
  std::string_view name;
  std::size_t size;
};

// In the order of the enumeration.
constexpr std::array<Entry, 7> kEntries = {{
    {DType::kFloat64, "float64", 8},
    {DType::kFloat32, "float32", 4},
    {DType::kBFloat16, "bfloat16", 2},
    {DType::kFloat16, "float16", 2},
    {DType::kInt64, "int64", 8},
    {DType::kInt32, "int32", 4},
    {DType::kUInt8, "uint8", 1},
}};

}  // namespace

std::size_t size_of(DType dtype) { return kEntries[static_cast<std::size_t>(dtype)].size; }

std::string_view name_of(DType dtype) { return kEntries[static_cast<std::size_t>(dtype)].name; }

DType dtype_of(std::string_view name) {
  for (const Entry& entry : kEntries) {
    if (entry.name == name) return entry.dtype;
  }
  throw UsageError(concat("dtype '", name, "' is not supported: use float64, float32, bfloat16, ",
                          "float16, int64, int32 or uint8"));
}

}  // namespace dpcomm
