#pragma once

#include <cstddef>

namespace dpcomm {

inline constexpr std::size_t kCacheLine = 64;  // bytes
inline constexpr std::size_t kPage = 4096;

// Streams that one loop reads and writes are faster by a tenth where they are not all at the same
// place in their pages: a processor that looks for a load among earlier stores compares the lower
// twelve bits of addresses first.
inline constexpr std::size_t kApart = kPage / 2;

}  // namespace dpcomm
