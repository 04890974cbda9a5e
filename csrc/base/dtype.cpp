#include "base/dtype.hpp"

#include "base/error.hpp"

namespace dpcomm {
DType dtype_of(std::string_view name) {
  for (std::size_t dtype = 0; dtype < kDTypes; ++dtype) {
    if (kDTypeNames[dtype] == name) return static_cast<DType>(dtype);
  }
  throw UsageError(concat("dtype '", name, "' is not supported: use float64, float32, bfloat16, ",
                          "float16, int64, int32 or uint8"));
}

}  // namespace dpcomm
