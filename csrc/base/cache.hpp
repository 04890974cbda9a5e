#pragma once

#include <cstddef>

namespace dpcomm {

inline constexpr std::size_t kCacheLine = 64;  // bytes

}  // namespace dpcomm
