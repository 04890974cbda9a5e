#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "transport/stamp.hpp"

namespace dpcomm {

// Where a rank's data lies, as ShmTransport's tokens, and what it is to be multiplied by.
struct Buffers {
  std::uint64_t input = 0;
  std::uint64_t output = 0;
  double scale = 1;
  std::size_t lead = 0;  // of a private input in each slot of staging memory
};

// What a rank posts at the start of a direct collective. The first line holds all that a short one
// needs: one cache miss a peer.
struct alignas(64) Entry {
  static constexpr std::size_t kShort = 48;
  static constexpr std::size_t kTiny = 4096;

  std::atomic<std::uint64_t> posted{0};  // which direct collective, from 1
  std::uint64_t fingerprint = 0;         // of the stamp
  union {
    std::byte line[kShort] = {};
    Buffers buffers;  // where the payload is not posted
  };
  alignas(64) Stamp stamp;  // read when fingerprints differ
  alignas(64) std::byte data[kTiny] = {};

  std::byte* payload(std::size_t bytes) { return bytes <= kShort ? line : data; }
};

}  // namespace dpcomm
