#pragma once

#include <cstdint>

#include "privacy/key.hpp"

namespace dpcomm {

// Exponential variates from kCount blocks of ChaCha20, `stride` apart, the 8 of each block after
// one another, where the counters agree in their upper 32 bits: E = -ln(1 - v) or -ln(v), whichever
// keeps all of v's 64 random bits. Every step is a correctly rounded operation in a fixed order,
// hence the same bits on every processor.
template <int kCount>
void exponentials(const NoiseKey& key, std::uint64_t step, std::uint64_t counter,
                  std::uint32_t stride, double* out);

}  // namespace dpcomm
