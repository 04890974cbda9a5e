#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "base/dtype.hpp"
#include "base/host_device.hpp"

namespace dpcomm {

// `Scalar` (scalar.hpp) for DPCOMM_LANES numbers at once, on the compiler's vectors. Intrinsics
// stand only where GCC does not find the instruction by itself; the loops serve any processor.
namespace {

struct Lanes {
  static constexpr int kCount = DPCOMM_LANES;
  typedef float Float __attribute__((vector_size(4 * kCount)));
  typedef std::int32_t Int __attribute__((vector_size(4 * kCount)));
  typedef std::uint32_t Word __attribute__((vector_size(4 * kCount)));
  typedef std::uint64_t Wide __attribute__((vector_size(4 * kCount)));

  typedef double Double __attribute__((vector_size(4 * kCount)));  // half as many

  DPCOMM_HD static Float fma(Float a, Float b, Float c) {
#if defined(__AVX512F__) && DPCOMM_LANES == 16
    return _mm512_fmadd_ps(a, b, c);
#else
    Float result;
    for (int i = 0; i < kCount; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return result;
#endif
  }

  DPCOMM_HD static Float sqrt(Float a) {
#if defined(__AVX512F__) && DPCOMM_LANES == 16
    return _mm512_sqrt_ps(a);
#else
    Float result;
    for (int i = 0; i < kCount; ++i) result[i] = __builtin_sqrtf(a[i]);
    return result;
#endif
  }

  DPCOMM_HD static Wide multiply_low(Wide a, std::uint32_t factor) {
    const Wide factors = Wide{} + factor;
#if defined(__AVX512F__) && DPCOMM_LANES == 16
    return reinterpret_cast<Wide>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(factors)));
#elif defined(__AVX2__) && DPCOMM_LANES == 8
    return reinterpret_cast<Wide>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(factors)));
#else
    return (a & 0xffffffffu) * factors;
#endif
  }

  // a - 0 is a, also for -0: the compiler sees a plain broadcast.
  DPCOMM_HD static Float broadcast(float a) { return a - Float{}; }
  DPCOMM_HD static Float to_float(Int a) { return __builtin_convertvector(a, Float); }
  DPCOMM_HD static Float to_float(Word a) { return __builtin_convertvector(a, Float); }
  DPCOMM_HD static Int to_int(Word a) { return reinterpret_cast<Int>(a); }
  DPCOMM_HD static Word bits(Float a) { return reinterpret_cast<Word>(a); }
  DPCOMM_HD static Float from_bits(Word a) { return reinterpret_cast<Float>(a); }

  DPCOMM_HD static Float load(const float* from) { return read<Float>(from); }
  DPCOMM_HD static Float load(const BFloat16* from) {
    return from_bits(__builtin_convertvector(read<Short>(from), Word) << 16);
  }
  DPCOMM_HD static Float load(const Float16* from) {  // as to_float in base/dtype.hpp
    const Word half = __builtin_convertvector(read<Short>(from), Word);
    const Word shifted = (half & 0x7fffu) << 13;
    const Word finite = bits(from_bits(shifted) * 0x1p112f);
    const Word magnitude = (half & 0x7fffu) >= 0x7c00u ? shifted | 0x7f800000u : finite;
    return from_bits(magnitude | (half & 0x8000u) << 16);
  }
  DPCOMM_HD static void store(float* to, Float a) { std::memcpy(to, &a, sizeof a); }

  // kCount / 2 numbers.
  DPCOMM_HD static Double load_double(const float* from) {
    return to_double(read<HalfFloat>(from));
  }

  // sum + a^2. The square of a float is exact in double, so that fusing changes no bit.
  DPCOMM_HD static Double add_square(Double sum, Double a) {
#if defined(__AVX512F__) && DPCOMM_LANES == 16
    return _mm512_fmadd_pd(a, a, sum);
#elif defined(__FMA__) && DPCOMM_LANES == 8
    return _mm256_fmadd_pd(a, a, sum);
#else
    return sum + a * a;
#endif
  }

  // Adds the first half of `a` to sums[0], the second to sums[1].
  DPCOMM_HD static void add_double(Float a, Double* sums) {
    HalfFloat halves[2];
    std::memcpy(halves, &a, sizeof a);
    sums[0] += to_double(halves[0]);
    sums[1] += to_double(halves[1]);
  }

  // 0, 1, 2, …
  DPCOMM_HD static Word iota() {
    Word result;
    for (int i = 0; i < kCount; ++i) result[i] = static_cast<std::uint32_t>(i);
    return result;
  }

 private:
  typedef float HalfFloat __attribute__((vector_size(2 * kCount)));
  typedef std::uint16_t Short __attribute__((vector_size(2 * kCount)));

  DPCOMM_HD static Double to_double(HalfFloat a) {
#if defined(__AVX512F__) && DPCOMM_LANES == 16
    return _mm512_cvtps_pd(a);
#else
    return __builtin_convertvector(a, Double);
#endif
  }

  template <class Vector>
  DPCOMM_HD static Vector read(const void* from) {
    Vector result;
    std::memcpy(&result, from, sizeof result);
    return result;
  }
};

}  // namespace
}  // namespace dpcomm
