#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "privacy/chacha20.hpp"
#include "privacy/gaussian.hpp"
#include "privacy/noise.hpp"
#include "privacy/noise_lanes.hpp"
#include "privacy/philox.hpp"
#include "privacy/scalar.hpp"

namespace dpcomm {
namespace {

float rounded_up(double value) {
  const auto nearest = static_cast<float>(value);
  if (nearest >= value) return nearest;
  return std::nextafterf(nearest, std::numeric_limits<float>::infinity());
}

void add_noise_scalar(float* data, std::size_t count, std::uint64_t offset, const NoiseSpec& spec,
                      const NoiseTask& task) {
  for (std::size_t i = 0; i < count; ++i) {
    data[i] = std::fma(task.std, noise_at(spec, offset + i), data[i]) * task.scale;
  }
}

}  // namespace

NoiseTask noise_task(const NoiseSpec& spec, std::size_t count, std::uint64_t offset, float scale) {
  DPCOMM_CHECK(spec.std >= 0 && std::isfinite(rounded_up(spec.std)), UsageError,
               "the noise's standard deviation is ", spec.std,
               ": give a float of zero or more, the noise multiplier times the clip norm");
  DPCOMM_CHECK(offset + count >= offset, UsageError, "elements ", offset, " to ", offset, " + ",
               count, " pass 2^64: elements are counted by 64 bits");
  NoiseTask task{.generator = spec.generator,
                 .key = {},
                 .step = spec.step,
                 .std = rounded_up(spec.std),
                 .scale = scale};
  if (spec.generator == Generator::kPhilox) {
    const auto key = philox_key(spec.key);
    std::copy(key.begin(), key.end(), task.key);
  } else {
    std::copy(spec.key.words.begin(), spec.key.words.end(), task.key);
  }
  return task;
}

std::array<std::uint32_t, 2> philox_key(const NoiseKey& key) {
  const auto input = chacha20_input(Purpose::kPhiloxKey, 0, 0);
  std::uint32_t block[16];
  ChaCha20<std::uint32_t>::block(key.words.data(), input.data(), block);
  return {block[0], block[1]};
}

float noise_at(const NoiseSpec& spec, std::uint64_t element) {
  const std::uint64_t words = spec.generator == Generator::kChaCha20 ? 16 : 4;
  const std::uint64_t group = element / (kNoiseLanes * words);
  const std::uint64_t block = group * kNoiseLanes + element % kNoiseLanes;
  const std::uint64_t word = element / kNoiseLanes % words;
  std::uint32_t random[16];
  if (spec.generator == Generator::kChaCha20) {
    const auto input = chacha20_input(Purpose::kNoise, block, spec.step);
    ChaCha20<std::uint32_t>::block(spec.key.words.data(), input.data(), random);
  } else {
    const auto key = philox_key(spec.key);
    std::uint64_t counter[4] = {block, block >> 32, spec.step, spec.step >> 32};
    philox4x32<Scalar>(counter, key[0], key[1]);
    for (int k = 0; k < 4; ++k) random[k] = static_cast<std::uint32_t>(counter[k]);
  }
  float first, second;
  gaussian_pair<Scalar>(random[word & ~1u], random[word | 1u], first, second);
  return word % 2 == 0 ? first : second;
}

void parallel_tiles(int threads, std::size_t count, std::uint64_t offset,
                    const std::function<void(std::size_t begin, std::size_t length)>& work) {
  const std::size_t skip = offset % kNoiseTile;
  const std::size_t tiles = (skip + count + kNoiseTile - 1) / kNoiseTile;
  parallel(threads, [&](int thread) {
    const auto edge = [&](int part) {
      const std::size_t end = tiles * static_cast<std::size_t>(part) / threads * kNoiseTile;
      return std::min(end < skip ? 0 : end - skip, count);
    };
    work(edge(thread), edge(thread + 1) - edge(thread));
  });
}

void add_noise(float* data, std::size_t count, std::uint64_t offset, const NoiseSpec& spec,
               float scale, int threads, Isa isa) {
  const NoiseTask task = noise_task(spec, count, offset, scale);
  parallel_tiles(threads, count, offset, [&](std::size_t begin, std::size_t some) {
    switch (isa) {
      case Isa::kScalar:
        return add_noise_scalar(data + begin, some, offset + begin, spec, task);
      case Isa::kGeneric:
        return add_noise_lanes<4>(data + begin, some, offset + begin, task);
      case Isa::kAvx2:
        return add_noise_lanes<8>(data + begin, some, offset + begin, task);
      case Isa::kAvx512:
        return add_noise_lanes<16>(data + begin, some, offset + begin, task);
    }
  });
}

}  // namespace dpcomm
