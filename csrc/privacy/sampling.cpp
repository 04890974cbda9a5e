#include "privacy/sampling.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "privacy/sampling_lanes.hpp"

namespace dpcomm {
namespace {

constexpr std::int64_t kIdsPerBlock = 1 << 14;
constexpr std::uint64_t kCountersPerBlock = 1 << 12;  // of 8 draws; a block needs 2^14 + 1 at most

// The exponential variates of one block of ids.
class Exponentials {
 public:
  Exponentials(const NoiseKey& key, std::uint64_t step, std::int64_t block, Isa isa)
      : key_(key),
        step_(step),
        counter_(static_cast<std::uint64_t>(block) * kCountersPerBlock),
        isa_(isa) {}

  double next() {
    if (used_ == drawn_) draw();
    return variates_[used_++];
  }

 private:
  void draw() {
    const int lanes = isa_ == Isa::kAvx512 ? 16 : isa_ == Isa::kAvx2 ? 8 : 4;
    const auto fill = lanes == 16  ? exponentials<16>
                      : lanes == 8 ? exponentials<8>
                                   : exponentials<4>;
    fill(key_, step_, counter_, variates_);
    counter_ += static_cast<std::uint64_t>(lanes);
    drawn_ = 8 * lanes;
    used_ = 0;
  }

  const NoiseKey& key_;
  std::uint64_t step_;
  std::uint64_t counter_;  // a multiple of 16, so that lanes do not carry
  Isa isa_;
  int used_ = 0;
  int drawn_ = 0;
  double variates_[8 * 16];
};

}  // namespace

std::vector<std::int64_t> poisson_sample(const NoiseKey& key, std::uint64_t step,
                                         double sample_rate, std::int64_t begin, std::int64_t end,
                                         Isa isa) {
  DPCOMM_CHECK(sample_rate == 0 || (sample_rate >= 0x1p-30 && sample_rate <= 1), UsageError,
               "sample rate ", sample_rate,
               ": give the probability that a record is taken, 0 or from 2^-30 to 1");
  DPCOMM_CHECK(0 <= begin && begin <= end && end <= std::int64_t{1} << 62, UsageError,
               "record ids from ", begin, " to ", end, ": give 0 <= begin <= end <= 2^62");
  std::vector<std::int64_t> ids;
  if (sample_rate == 0 || begin == end) return ids;
  const double lambda = -std::log1p(-sample_rate) * (1 - 0x1p-32);
  for (std::int64_t block = begin / kIdsPerBlock; block * kIdsPerBlock < end; ++block) {
    Exponentials draws(key, step, block, isa);
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
