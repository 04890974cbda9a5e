#include "data/gather.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "base/cache.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"

namespace dpcomm {
namespace {

constexpr std::size_t kAhead = 16;  // rows under way from memory while one is copied

// Looks up the shard only when an id leaves the last one's: rarely, where ids ascend.
class Finder {
 public:
  explicit Finder(const Shards& shards) : shards_(shards) {}

  const std::byte* operator()(std::int64_t id) {
    const auto& starts = shards_.starts;
    if (id < starts[shard_] || id >= starts[shard_ + 1]) {
      const auto after = std::upper_bound(starts.begin(), starts.end(), id);
      shard_ = static_cast<std::size_t>(after - starts.begin()) - 1;
    }
    return shards_.rows[shard_] + static_cast<std::size_t>(id - starts[shard_]) * shards_.row_bytes;
  }

 private:
  const Shards& shards_;
  std::size_t shard_ = 0;
};

// No hardware prefetcher foresees random rows, and memory is latency: ask for them early.
void copy(const Shards& shards, std::span<const std::int64_t> ids, std::byte* out) {
  Finder find(shards);
  std::array<const std::byte*, kAhead> coming;
  for (std::size_t i = 0; i < ids.size() + kAhead; ++i) {
    const std::byte*& row = coming[i % kAhead];
    if (i >= kAhead) std::memcpy(out + (i - kAhead) * shards.row_bytes, row, shards.row_bytes);
    if (i >= ids.size()) continue;
    row = find(ids[i]);
    for (std::size_t at = 0; at < shards.row_bytes; at += kCacheLine) __builtin_prefetch(row + at);
    __builtin_prefetch(row + shards.row_bytes - 1);
  }
}

}  // namespace

void gather(const Shards& shards, std::span<const std::int64_t> ids, std::byte* out, int threads) {
  DPCOMM_CHECK(threads >= 1, UsageError, threads, " threads: give at least 1");
  const std::int64_t end = shards.starts.back();
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= end) {
      throw std::out_of_range(concat("record ", id, " is outside [0, ", end, ")"));
    }
  }
  parallel(threads, [&](int thread) {
    const auto cut = [&](int t) { return ids.size() * static_cast<std::size_t>(t) / threads; };
    const std::size_t begin = cut(thread);
    copy(shards, ids.subspan(begin, cut(thread + 1) - begin), out + begin * shards.row_bytes);
  });
}

}  // namespace dpcomm
