#pragma once

#include "base/host_device.hpp"

namespace dpcomm {

// Box and Muller's transform: two uniform words become two independent standard normals. Every
// step is a correctly rounded operation in a fixed order, hence the same bits everywhere.
//
// Of the 64 bits, 40 make the radius and 24 the angle. The radius so reaches 7.5 sigma in steps
// that at 6 sigma are still a ten-thousandth of what is left of the tail.
//
// The polynomials are minimax fits (tests/privacy/test_gaussian.py holds their error), their
// coefficients rounded to float one after the other, the rest fitted again each time.
template <class L>
DPCOMM_HD void gaussian_pair(typename L::Word a, typename L::Word b, typename L::Float& first,
                             typename L::Float& second) {
  using Float = typename L::Float;
  const auto c = [](float value) { return L::broadcast(value); };

  // 2^32 u, where u is uniform over the centres of 2^40 equal parts of (0, 1).
  const Float scaled = L::fma(L::to_float(b & 0xffu) + c(0.5f), c(0x1p-8f), L::to_float(a));

  // -2 ln u = -2 ln 2 exponent + f Q(f), with u = 2^exponent (1 + f), 1/sqrt(2) <= 1 + f < sqrt(2).
  constexpr auto kSqrtHalf = 0x3f3504f3u;
  const auto distance = L::bits(scaled) - kSqrtHalf;
  const Float exponent = L::to_float((L::to_int(distance) >> 23) - 32);
  const Float f = L::from_bits((distance & 0x7fffffu) + kSqrtHalf) - c(1.0f);
  Float q = c(-0x1.65f0f0p-3f);
  q = L::fma(q, f, c(0x1.2505acp-2f));
  q = L::fma(q, f, c(-0x1.317ca8p-2f));
  q = L::fma(q, f, c(0x1.535c2ap-2f));
  q = L::fma(q, f, c(-0x1.98d3a0p-2f));
  q = L::fma(q, f, c(0x1.0004a8p-1f));
  q = L::fma(q, f, c(-0x1.5556f0p-1f));
  q = L::fma(q, f, c(0x1.fffffap-1f));
  q = L::fma(q, f, c(-2.0f));
  const Float radius = L::sqrt(L::fma(exponent, c(-0x1.62e430p+0f), f * q));

  // The angle is pi/2 t, with t uniform over the centres of 2^23 parts of (-1, 1); a sign on the
  // cosine makes the half circle whole.
  const Float t = L::fma(L::to_float(L::to_int(b) >> 9), c(0x1p-22f), c(0x1p-23f));
  const Float t2 = t * t;
  Float sine = c(0x1.3b1f06p-13f);
  sine = L::fma(sine, t2, c(-0x1.3233f0p-8f));
  sine = L::fma(sine, t2, c(0x1.4668b8p-4f));
  sine = L::fma(sine, t2, c(-0x1.4abbcep-1f));
  sine = L::fma(sine, t2, c(0x1.921fb6p+0f)) * t;
  Float cosine = c(0x1.8bd856p-16f);  // over 1 - t^2, so that it keeps its precision near 0
  cosine = L::fma(cosine, t2, c(-0x1.d4786ep-11f));
  cosine = L::fma(cosine, t2, c(0x1.472a76p-6f));
  cosine = L::fma(cosine, t2, c(-0x1.de9e60p-3f));
  cosine = L::fma(cosine, t2, c(1.0f)) * L::fma(-t, t, c(1.0f));

  const auto sign = (b << 23) & 0x80000000u;
  first = L::from_bits(L::bits(radius * cosine) ^ sign);
  second = radius * sine;
}

}  // namespace dpcomm
