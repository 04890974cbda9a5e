#pragma once

#include <cstddef>
#include <cstdint>

namespace dpcomm {

inline constexpr std::size_t kCacheLine = 64;  // bytes
inline constexpr std::size_t kPage = 4096;

// Streams that one loop reads and writes are faster by a tenth where they are not all at the same
// place in their pages: a processor that looks for a load among earlier stores compares the lower
// twelve bits of addresses first.
inline constexpr std::size_t kApart = kPage / 2;

// Makes this core the only one that holds the line, so that a store to it will not wait.
inline void claim(const void* line) {
#if defined(__x86_64__)
  // The builtin reads, unless one compiles for processors that are sure to have this.
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));
#else
  __builtin_prefetch(line, 1);
#endif
}

// How far into `room`, by default the start of a page, a copy of `data` is to begin: apart from it,
// and at the same place in a cache line, so that no copy or sum crosses lines.
inline std::size_t lead_beside(const void* data, const void* room = nullptr) {
  return (reinterpret_cast<std::uintptr_t>(data) + kApart -
          reinterpret_cast<std::uintptr_t>(room)) %
         kPage;
}

}  // namespace dpcomm
