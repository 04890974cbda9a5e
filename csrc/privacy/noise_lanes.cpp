// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "privacy/noise_lanes.hpp"

#include "privacy/chacha20.hpp"
#include "privacy/gaussian.hpp"
#include "privacy/lanes.hpp"
#include "privacy/philox.hpp"

namespace dpcomm {
namespace {

using L = Lanes;
constexpr int kCount = Lanes::kCount;

// Words of one row of 32 blocks in the order of rows; `first` is the first of kCount blocks.
template <int kWords>
void store_pairs(const L::Word* words, float* out) {
  for (int word = 0; word < kWords; word += 2) {
    L::Float first, second;
    gaussian_pair<L>(words[word], words[word + 1], first, second);
    L::store(out + word * kNoiseLanes, first);
    L::store(out + (word + 1) * kNoiseLanes, second);
  }
}

void fill_chacha20(const NoiseTask& task, std::uint64_t tile, float* out) {
  for (std::uint64_t lane = 0; lane < kNoiseLanes; lane += kCount) {
    const auto row = chacha20_input(Purpose::kNoise, tile * kNoiseLanes + lane, task.step);
    const L::Word input[4] = {L::iota() + row[0], L::Word{} + row[1], L::Word{} + row[2],
                              L::Word{} + row[3]};
    L::Word words[16];
    ChaCha20<L::Word>::block(task.key, input, words);
    store_pairs<16>(words, out + lane);
  }
}

void fill_philox(const NoiseTask& task, std::uint64_t tile, float* out) {
  constexpr std::uint64_t kGroup = 4 * kNoiseLanes;
  for (std::uint64_t i = 0; i < kNoiseTile; i += kGroup) {
    for (std::uint64_t lane = 0; lane < kNoiseLanes; lane += kCount) {
      const std::uint64_t block = (tile * kNoiseTile + i) / 4 + lane;
      const auto low = reinterpret_cast<L::Wide>(L::iota() + static_cast<std::uint32_t>(block));
      const auto word = [](std::uint64_t value) { return L::Wide{} + value; };
      // Even lanes, then odd ones, each in the low half of 64 bits.
      L::Wide even[4] = {low, word(block >> 32), word(task.step), word(task.step >> 32)};
      L::Wide odd[4] = {low >> 32, even[1], even[2], even[3]};
      philox4x32<L>(even, task.key[0], task.key[1]);
      philox4x32<L>(odd, task.key[0], task.key[1]);
      L::Word words[4];
      for (int k = 0; k < 4; ++k) {
        words[k] = reinterpret_cast<L::Word>((even[k] & 0xffffffffu) | (odd[k] << 32));
      }
      store_pairs<4>(words, out + i + lane);
    }
  }
}

}  // namespace

template <>
void noise_tile<kCount>(const NoiseTask& task, std::uint64_t tile, float* out) {
  if (task.generator == Generator::kChaCha20) {
    fill_chacha20(task, tile, out);
  } else {
    fill_philox(task, tile, out);
  }
}

template <>
void add_noise_lanes<kCount>(float* data, std::size_t count, std::uint64_t offset,
                             const NoiseTask& task) {
  alignas(64) float noise[kNoiseTile] = {};
  const L::Float std = L::broadcast(task.std);
  const L::Float scale = L::broadcast(task.scale);
  for (std::size_t done = 0; done < count;) {
    const std::uint64_t element = offset + done;
    const std::uint64_t skip = element % kNoiseTile;
    const std::size_t some = kNoiseTile - skip < count - done ? kNoiseTile - skip : count - done;
    if (task.std > 0) noise_tile<kCount>(task, element / kNoiseTile, noise);
    float* to = data + done;
    const float* from = noise + skip;
    std::size_t i = 0;
    for (; i + kCount <= some; i += kCount) {
      L::store(to + i, L::fma(std, L::load(from + i), L::load(to + i)) * scale);
    }
    for (; i < some; ++i) to[i] = __builtin_fmaf(task.std, from[i], to[i]) * task.scale;
    done += some;
  }
}

}  // namespace dpcomm
