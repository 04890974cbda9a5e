#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/cache.hpp"
#include "transport/stamp.hpp"

namespace dpcomm {

// Where a rank's data lies, as SharedMemory's tokens, and what it is to be multiplied by.
struct Buffers {
  std::uint64_t input = 0;
  std::uint64_t output = 0;
  double scale = 1;
  std::size_t lead = 0;  // bytes from the start of a cache line to the input
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

// Ranks that read and write each other's memory. A direct collective of every rank is: fill own(),
// enter(), work, and meet() where others' memory must be left alone again. Entries are used in
// turns of two: who has seen all entries of one collective knows that everybody is done with those
// of the one before.
class SharedMemory {
 public:
  static constexpr std::uint64_t kPrivate = ~std::uint64_t{0};
  static constexpr int kSlots = 2;
  static constexpr std::size_t kSlotBytes = std::size_t{512} << 10;
  static constexpr std::size_t kSlotStride = kSlotBytes + 4096;  // a page, for an input's lead

  // What peers find [data, data + bytes) by; kPrivate where they cannot see it.
  virtual std::uint64_t token(const void* data, std::size_t bytes) const = 0;
  virtual std::byte* at(std::uint64_t token) const = 0;

  virtual Entry& own() = 0;  // of the next direct collective
  // Posts own(), and returns when all ranks have posted theirs. Raises what Transport::exchange
  // raises.
  virtual void enter(const Stamp& stamp) = 0;
  virtual Entry& entry(int rank) = 0;  // of the present direct collective
  virtual void meet(const Stamp& stamp) = 0;
  // kSlots a rank, of kSlotBytes and a lead each, for buffers that peers cannot see.
  virtual std::byte* staging(int rank, int slot) = 0;
  virtual bool sees_all() const = 0;  // any buffer: the ranks are threads
  // Memory that peers see, zeroed, on a page boundary; nullptr when there is no more.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* data) noexcept = 0;

 protected:
  ~SharedMemory() = default;
};

}  // namespace dpcomm
