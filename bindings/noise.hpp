#pragma once

#include <pybind11/pybind11.h>

#include "privacy/key.hpp"

namespace dpcomm {

// A key as Python holds it: 32 bytes, words little-endian as in RFC 8439. UsageError for another
// length.
NoiseKey key_of(const pybind11::bytes& bytes);

void bind_noise(pybind11::module_& module);

}  // namespace dpcomm
