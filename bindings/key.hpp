#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

#include "privacy/key.hpp"
#include "privacy/noise.hpp"

namespace dpcomm {

// A key as Python holds it: 32 bytes, words little-endian as in RFC 8439. UsageError for another
// length.
NoiseKey key_of(const pybind11::bytes& bytes);

Generator generator_of(std::string_view name);  // UsageError for an unknown name

}  // namespace dpcomm
