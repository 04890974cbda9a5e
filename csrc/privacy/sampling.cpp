#include "privacy/sampling.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "privacy/chacha20.hpp"

namespace dpcomm {
namespace {

constexpr std::int64_t kIdsPerBlock = 1 << 14;
constexpr std::uint64_t kCountersPerBlock = 1 << 12;  // of 8 draws; a block needs 2^14 + 1 at most

// The exponential variates of one block of ids.
class Exponentials {
 public:
  Exponentials(const NoiseKey& key, std::uint64_t step, std::int64_t block)
      : key_(key), step_(step), counter_(static_cast<std::uint64_t>(block) * kCountersPerBlock) {}

  double next() {
    if (used_ == 16) {
      const auto input = chacha20_input(Purpose::kSampling, counter_++, step_);
      ChaCha20<std::uint32_t>::block(key_.words.data(), input.data(), words_);
      used_ = 0;
    }
    const std::uint64_t v = words_[used_] | static_cast<std::uint64_t>(words_[used_ + 1]) << 32;
    used_ += 2;
    if (v >> 63 == 0) return -std::log1p(-0x1p-64 * static_cast<double>(v));
    return -std::log(0x1p-64 * static_cast<double>(~v + 1));
  }

 private:
  const NoiseKey& key_;
  std::uint64_t step_;
  std::uint64_t counter_;
  std::uint32_t words_[16];
  int used_ = 16;
};

}  // namespace

std::vector<std::int64_t> poisson_sample(const NoiseKey& key, std::uint64_t step,
                                         double sample_rate, std::int64_t begin, std::int64_t end) {
  DPCOMM_CHECK(sample_rate == 0 || (sample_rate >= 0x1p-30 && sample_rate <= 1), UsageError,
               "sample rate ", sample_rate,
               ": give the probability that a record is taken, 0 or from 2^-30 to 1");
  DPCOMM_CHECK(0 <= begin && begin <= end && end <= std::int64_t{1} << 62, UsageError,
               "record ids from ", begin, " to ", end, ": give 0 <= begin <= end <= 2^62");
  std::vector<std::int64_t> ids;
  if (sample_rate == 0 || begin == end) return ids;
  const double lambda = -std::log1p(-sample_rate) * (1 - 0x1p-32);
  for (std::int64_t block = begin / kIdsPerBlock; block * kIdsPerBlock < end; ++block) {
    Exponentials draws(key, step, block);
    const std::int64_t first = block * kIdsPerBlock;
    const std::int64_t last = std::min(first + kIdsPerBlock, end);
    for (std::int64_t id = first;; ++id) {
      // Compared before the conversion, for a skip may pass the range of integers.
      const double skip = draws.next() / lambda;
      if (skip >= static_cast<double>(last - id)) break;
      id += static_cast<std::int64_t>(skip);
      if (id >= begin) ids.push_back(id);
    }
  }
  return ids;
}

}  // namespace dpcomm
