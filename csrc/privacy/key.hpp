#pragma once

#include <array>
#include <cstdint>

namespace dpcomm {

// 256 secret bits. Drawn afresh by each launch and never written to disk, so that no noise is ever
// drawn twice.
struct NoiseKey {
  std::array<std::uint32_t, 8> words;
};

// One key serves several streams that have no block in common.
enum class Purpose : std::uint64_t { kNoise, kSampling, kPhiloxKey };

// The last row of ChaCha20's state for block `counter` < 2^61 of `step`: counter and purpose in
// the first two words, the step in the others.
constexpr std::array<std::uint32_t, 4> chacha20_input(Purpose purpose, std::uint64_t counter,
                                                      std::uint64_t step) {
  const std::uint64_t tagged = counter | static_cast<std::uint64_t>(purpose) << 61;
  return {static_cast<std::uint32_t>(tagged), static_cast<std::uint32_t>(tagged >> 32),
          static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(step >> 32)};
}

}  // namespace dpcomm
