// Compiled once for each width of Isa, with DPCOMM_LANES and that processor's flags.
#include "privacy/sampling_lanes.hpp"

#include <cstring>

#include "privacy/chacha20.hpp"
#include "privacy/lanes.hpp"

namespace dpcomm {
namespace {

using L = Lanes;
using Double = L::Double;
constexpr int kCount = L::kCount;
constexpr int kHalf = kCount / 2;
typedef std::int64_t Int64 __attribute__((vector_size(4 * kCount)));
typedef std::uint32_t HalfWord __attribute__((vector_size(2 * kCount)));

// ln y for a normal y > 0: k ln 2 + ln m with y = 2^k m and 1/sqrt(2) <= m < sqrt(2), where
// ln m = 2 atanh(s), s = (m - 1) / (m + 1), by atanh's own series: 0.1716^24 is below 2^-60.
Double log(Double y) {
  constexpr std::int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  const Int64 distance = reinterpret_cast<Int64>(y) - kSqrtHalf;
  const Double k = __builtin_convertvector(distance >> 52, Double);
  const Double f =
      reinterpret_cast<Double>((distance & 0xfffffffffffff) + kSqrtHalf) - 1.0;  // exact
  const Double s = f / (f + 2.0);
  const Double z = s * s;
  Double series = Double{} + 2.0 / 23;
  for (int n = 21; n >= 3; n -= 2) series = series * z + 2.0 / n;
  // ln 2 in two parts, of which k times the first is exact.
  const Double low = k * 0x1.ef35793c7673p-45 + s * (z * series);
  return k * 0x1.62e42fefa38p-1 + (s * 2.0 + low);
}

Double exponential(L::Wide v) {
  const auto bits = reinterpret_cast<Int64>(v);
  const Int64 low = bits >= 0;  // v < 1/2
  const Double one = low ? Double{} : Double{} + 1.0;
  const Double distance = 0x1p-64 * (__builtin_convertvector(low ? bits : ~bits, Double) + one);
  const Double y = low ? 1.0 - distance : distance;
  // What the rounding of 1 - distance lost adds to the logarithm, to the first order.
  const Double lost = low ? (1.0 - y) - distance : Double{};
  return -(log(y) + lost);
}

}  // namespace

template <>
void exponentials<kCount>(const NoiseKey& key, std::uint64_t step, std::uint64_t counter,
                          std::uint32_t stride, double* out) {
  const auto row = chacha20_input(Purpose::kSampling, counter, step);
  const L::Word input[4] = {L::iota() * stride + row[0], L::Word{} + row[1], L::Word{} + row[2],
                            L::Word{} + row[3]};
  L::Word words[16];
  ChaCha20<L::Word>::block(key.words.data(), input, words);
  for (int pair = 0; pair < 8; ++pair) {
    HalfWord first[2], second[2];
    std::memcpy(first, &words[2 * pair], sizeof first);
    std::memcpy(second, &words[2 * pair + 1], sizeof second);
    for (int half = 0; half < 2; ++half) {
      const Double drawn = exponential(__builtin_convertvector(first[half], L::Wide) |
                                       __builtin_convertvector(second[half], L::Wide) << 32);
      for (int i = 0; i < kHalf; ++i) out[8 * (half * kHalf + i) + pair] = drawn[i];
    }
  }
}

}  // namespace dpcomm
