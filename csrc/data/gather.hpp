#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace dpcomm {

// Rows of one width in several shards (memory maps, say), numbered through.
struct Shards {
  std::span<const std::byte* const> rows;  // [shards], where each begins
  std::span<const std::int64_t> starts;    // [shards + 1], the id of each one's first row, the end
  std::size_t row_bytes;
};

// Copies row ids[i] to out + i * row_bytes, for ids in any order, with repetitions or none at all.
// Throws, before it writes, std::out_of_range for an id outside [0, starts.back()), and UsageError
// for fewer than one thread.
void gather(const Shards& shards, std::span<const std::int64_t> ids, std::byte* out, int threads);

}  // namespace dpcomm
