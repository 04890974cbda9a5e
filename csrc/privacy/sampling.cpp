#include "privacy/sampling.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "privacy/sampling_lanes.hpp"

namespace dpcomm {
namespace {

constexpr std::int64_t kIdsPerBlock = 1 << 14;
constexpr std::uint64_t kCountersPerBlock = 1 << 12;  // of 8 draws; a block needs 2^14 + 1 at most

constexpr int kGroup = 16;  // blocks of ids whose first draws are made together
constexpr int kFirst = 8;   // of each of them

// The exponential variates of one block of ids, after its first ones.
class Exponentials {
 public:
  Exponentials(const NoiseKey& key, std::uint64_t step, Isa isa)
      : key_(key), step_(step), isa_(isa) {}

  // The first draws of a whole group: few ids of a block are taken where the rate is low.
  void draw_group(std::int64_t group) {
    const auto counter = static_cast<std::uint64_t>(group) * kGroup * kCountersPerBlock;
    for (int block = 0; block < kGroup; block += lanes()) {
      fill(counter + block * kCountersPerBlock, kCountersPerBlock, first_ + block * kFirst);
    }
  }

  void begin(std::int64_t block) {
    from_ = first_ + block % kGroup * kFirst;
    left_ = kFirst;
    counter_ = static_cast<std::uint64_t>(block) * kCountersPerBlock + 1;
  }

  double next() {
    if (left_ == 0) {
      fill(counter_, 1, more_);
      counter_ += static_cast<std::uint64_t>(lanes());
      from_ = more_;
      left_ = 8 * lanes();
    }
    --left_;
    return *from_++;
  }

 private:
  int lanes() const {
    return with_lanes(isa_, [](auto lanes) { return int{lanes}; });
  }

  void fill(std::uint64_t counter, std::uint64_t stride, double* out) const {
    with_lanes(isa_, [&](auto lanes) {
      exponentials<lanes>(key_, step_, counter, static_cast<std::uint32_t>(stride), out);
    });
  }

  const NoiseKey& key_;
  std::uint64_t step_;
  Isa isa_;
  double first_[kGroup * kFirst];
  double more_[8 * 16];
  const double* from_ = nullptr;
  int left_ = 0;
  std::uint64_t counter_ = 0;
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
  const std::int64_t first_block = begin / kIdsPerBlock;
  Exponentials draws(key, step, isa);
  for (std::int64_t block = first_block; block * kIdsPerBlock < end; ++block) {
    if (block == first_block || block % kGroup == 0) draws.draw_group(block / kGroup);
    draws.begin(block);
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
