#pragma once

#include <cmath>
#include <cstdint>

#include "base/host_device.hpp"

namespace dpcomm {

// The arithmetic that the generators and the Gaussian transform are written in, one number at a
// time: the CPU's reference and CUDA's threads. `Lanes` (lanes.hpp) has the same members for
// several numbers at once. Each is correctly rounded, so that all give the same bits.
struct Scalar {
  using Float = float;
  using Int = std::int32_t;
  using Word = std::uint32_t;
  using Wide = std::uint64_t;

  DPCOMM_HD static Float fma(Float a, Float b, Float c) { return ::fmaf(a, b, c); }
  DPCOMM_HD static Float sqrt(Float a) { return ::sqrtf(a); }
  DPCOMM_HD static Float broadcast(float a) { return a; }
  DPCOMM_HD static Float to_float(Int a) { return static_cast<float>(a); }
  DPCOMM_HD static Float to_float(Word a) { return static_cast<float>(a); }
  DPCOMM_HD static Int to_int(Word a) { return static_cast<Int>(a); }
  DPCOMM_HD static Word bits(Float a) {
    Word word;
    __builtin_memcpy(&word, &a, sizeof word);
    return word;
  }
  DPCOMM_HD static Float from_bits(Word a) {
    Float number;
    __builtin_memcpy(&number, &a, sizeof number);
    return number;
  }
  // The product of the low 32 bits of `a` and `factor`, all 64 bits of it.
  DPCOMM_HD static Wide multiply_low(Wide a, std::uint32_t factor) {
    return (a & 0xffffffffu) * factor;
  }
};

}  // namespace dpcomm
