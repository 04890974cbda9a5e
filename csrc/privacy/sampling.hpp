#pragma once

#include <cstdint>
#include <vector>

#include "privacy/isa.hpp"
#include "privacy/key.hpp"

namespace dpcomm {

// Poisson sampling: each record id in [begin, end) is taken with probability `sample_rate`,
// independently of all others. Ids come in ascending order.
//
// The draws for an id depend on (key, step) and its place in a fixed block of 16384 ids, so that
// ranks that cut the ids differently take the same sample together. A block is walked by geometric
// skips, floor(E / lambda) with E exponential and lambda = -ln(1 - sample_rate), so the work grows
// with the sample, not with the records.
//
// The probability is never above sample_rate and at most 2^-31 of it below. E comes from 64 random
// bits (sampling_lanes.hpp). Its logarithm is right to 2^-50; v as a double, the rounding of 1 - v,
// lambda and the quotient together to another 2^-50. So E / lambda is right to 2^-49: this moves
// the chance of an id that comes after up to 2^14 skipped ones by at most 2^-34 of sample_rate, and
// the grain of v by 2^-64. Lambda is made smaller by 2^-32 to pay for both.
//
// UsageError for a rate outside [0, 1] or between 0 and 2^-30, and for ids of 2^62 and more.
std::vector<std::int64_t> poisson_sample(const NoiseKey& key, std::uint64_t step,
                                         double sample_rate, std::int64_t begin, std::int64_t end,
                                         Isa isa = best_isa());

}  // namespace dpcomm
