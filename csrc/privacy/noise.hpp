#pragma once

#include <cstddef>
#include <cstdint>

#include "privacy/isa.hpp"
#include "privacy/key.hpp"

namespace dpcomm {

enum class Generator { kChaCha20, kPhilox };

// Gaussian noise for one step. Its value for an element is a pure function of (key, generator,
// step, element), whatever the range it is drawn in, the thread, the processor or the device.
struct NoiseSpec {
  NoiseKey key;
  Generator generator;
  std::uint64_t step;
  double std;  // rounded up to float: never less noise than was asked for
};

// Where an element's noise comes from. Blocks of a generator lie side by side, 32 at a time, so
// that a vector or a warp computes one block a lane and stores whole rows:
//
//   element = (block / 32) * 32 words + word * 32 + block % 32,  words = 16 (ChaCha20), 4 (Philox)
//
// Words 2i and 2i + 1 make one Gaussian pair. ChaCha20's input is that of chacha20_input();
// Philox's counter is (block, step), 64 bits each, and its 64-bit key the first two words of the
// ChaCha20 block that is set apart for it under the 256-bit key.
inline constexpr std::uint64_t kNoiseLanes = 32;
inline constexpr std::uint64_t kNoiseTile = 512;  // elements that no block crosses the edges of

std::array<std::uint32_t, 2> philox_key(const NoiseKey& key);

// A standard normal: the plain definition that everything faster is tested against. std is unused.
float noise_at(const NoiseSpec& spec, std::uint64_t element);

// data[i] = fma(std, noise(offset + i), data[i]) * scale: the private step's epilogue, where scale
// is one over the expected batch. UsageError where std is negative or not finite, or offset + count
// passes 2^64.
void add_noise(float* data, std::size_t count, std::uint64_t offset, const NoiseSpec& spec,
               float scale = 1, int threads = 1, Isa isa = best_isa());

}  // namespace dpcomm
