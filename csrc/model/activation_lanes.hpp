#pragma once

#include <cmath>

#include "model/mlp.hpp"
#include "privacy/lanes.hpp"

// Activations and what the losses need of them, on vectors; a NaN stays a NaN. Written out rather
// than taken from a library, so that each width of vector gives the same bits.

namespace dpcomm {
namespace {

using Float = Lanes::Float;

DPCOMM_HD Float greater(Float a, Float b) { return b > a ? b : a; }  // a if either is NaN

// exp(x) - 1 for x <= 0: 2^n (1 + p) - 1 with x = n log(2) + r, p the Taylor series of exp(r) - 1,
// |r| < 0.35, to the seventh power (the next term is below 6e-9).
DPCOMM_HD Float expm1_of_negative(Float x) {
  const Float least = Lanes::broadcast(-87.0f);  // exp is still a normal number
  x = x < least ? least : x;
  const Float magic = Lanes::broadcast(0x1.8p23f);  // a float this large has no fraction
  const Float shifted = Lanes::fma(x, Lanes::broadcast(0x1.715476p+0f), magic);
  const Float n = shifted - magic;
  Float r = Lanes::fma(n, Lanes::broadcast(-0x1.62e4p-1f), x);  // log(2): short head, exact product
  r = Lanes::fma(n, Lanes::broadcast(-0x1.7f7d1cp-20f), r);
  Float p = Lanes::broadcast(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) {
    p = Lanes::fma(p, r, Lanes::broadcast(c));
  }
  const Float power = Lanes::from_bits((Lanes::bits(shifted) << 23) + 0x3f800000u);
  return Lanes::fma(p * r, power, power - 1.0f);
}

DPCOMM_HD Float exp_of_negative(Float x) { return expm1_of_negative(x) + 1.0f; }

DPCOMM_HD Float magnitude(Float x) { return Lanes::from_bits(Lanes::bits(x) & 0x7fffffffu); }

DPCOMM_HD Float tanh_of(Float x) {
  const Float m = expm1_of_negative(-2.0f * magnitude(x));
  const Float positive = -m / (m + 2.0f);
  return x < 0.0f ? -positive : positive;
}

DPCOMM_HD Float sigmoid_of(Float x) {
  const Float e = exp_of_negative(-magnitude(x));
  return (x < 0.0f ? e : Lanes::broadcast(1.0f)) / (1.0f + e);
}

// log(1 + y) for 0 <= y <= 1: 2 artanh(y / (2 + y)), whose argument is at most 1/3.
DPCOMM_HD Float log1p_of_fraction(Float y) {
  const Float s = y / (2.0f + y);
  const Float square = s * s;
  Float sum = Lanes::broadcast(1.0f / 15);
  for (const float c : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f}) {
    sum = Lanes::fma(sum, square, Lanes::broadcast(c));
  }
  return 2.0f * s * sum;
}

// The normal distribution function; erfc of the C library, one lane at a time.
DPCOMM_HD Float normal_cdf(Float x) {
  Float result;
  for (int i = 0; i < Lanes::kCount; ++i) {
    result[i] = 0.5f * std::erfc(x[i] * -0x1.6a09e6p-1f);
  }
  return result;
}

DPCOMM_HD Float normal_density(Float x) { return 0x1.988454p-2f * exp_of_negative(-0.5f * x * x); }

// y = activation(z)
template <Activation kKind>
DPCOMM_HD Float activated(Float z) {
  if constexpr (kKind == Activation::kRelu) return z < 0.0f ? Lanes::broadcast(0) : z;
  if constexpr (kKind == Activation::kTanh) return tanh_of(z);
  if constexpr (kKind == Activation::kSigmoid) return sigmoid_of(z);
  if constexpr (kKind == Activation::kGelu) return z * normal_cdf(z);
  return z;
}

// dy/dz * gradient, from both z and y. The slope of relu at 0 is 0, as in torch.
template <Activation kKind>
DPCOMM_HD Float slope_times(Float z, Float y, Float gradient) {
  if constexpr (kKind == Activation::kRelu) return z <= 0.0f ? Lanes::broadcast(0) : gradient;
  if constexpr (kKind == Activation::kTanh) return gradient * (1.0f - y * y);
  if constexpr (kKind == Activation::kSigmoid) return gradient * (y * (1.0f - y));
  if constexpr (kKind == Activation::kGelu) {
    return gradient * Lanes::fma(z, normal_density(z), normal_cdf(z));
  }
  return gradient;
}

template <class F>
void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kNone:
      return f(std::integral_constant<Activation, Activation::kNone>());
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>());
    case Activation::kTanh:
      return f(std::integral_constant<Activation, Activation::kTanh>());
    case Activation::kSigmoid:
      return f(std::integral_constant<Activation, Activation::kSigmoid>());
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>());
  }
}

// y = activation(z), `count` numbers (a multiple of the lanes).
void activate(Activation activation, const float* z, std::size_t count, float* y) {
  with_activation(activation, [&](auto kind) {
    for (std::size_t i = 0; i < count; i += Lanes::kCount) {
      Lanes::store(y + i, activated<decltype(kind)::value>(Lanes::load(z + i)));
    }
  });
}

// z = activation'(z) * gradient
void activate_backward(Activation activation, const float* y, const float* gradient,
                       std::size_t count, float* z) {
  with_activation(activation, [&](auto kind) {
    for (std::size_t i = 0; i < count; i += Lanes::kCount) {
      Lanes::store(z + i, slope_times<decltype(kind)::value>(Lanes::load(z + i), Lanes::load(y + i),
                                                             Lanes::load(gradient + i)));
    }
  });
}

}  // namespace
}  // namespace dpcomm
