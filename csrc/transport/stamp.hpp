#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/device.hpp"
#include "base/dtype.hpp"

namespace dpcomm {

enum class Operation : std::uint8_t {
  kNone,
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kReduce,
  kAllToAll,
  kBarrier,
  kSplit,
  kOpenGpu
};
inline constexpr std::size_t kOperations = 10;

std::string_view name_of(Operation operation);

// What a rank is doing: in front of every message, so that ranks that disagree find out, and in
// every error text. Bytes that travel: no pointers, no gaps.
struct Stamp {
  std::uint64_t sequence = 0;  // collectives on this communicator, from 1
  std::uint64_t count = 0;     // elements
  std::int32_t root = 0;
  DType dtype = DType::kUInt8;
  std::uint16_t round = 0;  // from 1
  std::uint16_t rounds = 0;
  Operation operation = Operation::kNone;
  RedOp redop = RedOp::kSum;
  char algorithm[19] = {};
  char epilogue[7] = {};  // what it is for; empty: there is none

  bool operator==(const Stamp&) const = default;
};

// A message on the wire begins with this, one cache line.
struct Header {
  Stamp stamp;
  std::uint64_t bytes = 0;  // of what follows
};
static_assert(sizeof(Header) == 64);

// Tells stamps that differ in what ranks must agree on, as good as surely. Multilinear hashing:
// each word times an odd number of its own, so that stamps that differ in one word never collide,
// and no product waits for another.
inline std::uint64_t fingerprint(const Stamp& stamp) {
  static_assert(sizeof(Stamp) % sizeof(std::uint64_t) == 0);
  std::uint64_t words[sizeof(Stamp) / sizeof(std::uint64_t)];
  std::memcpy(words, &stamp, sizeof(words));
  std::uint64_t hash = 0;
  std::uint64_t odd = 0x9e3779b97f4a7c15u;  // the golden ratio's bits
  for (std::uint64_t word : words) {
    hash += word * odd;
    odd *= 0xd1342543de82ef95u;  // constants, once the loop is unrolled
  }
  return hash;
}

// "all_reduce #12 (1000 float32, sum, ring, root 0)": what both sides must agree on.
std::string describe(const Stamp& stamp);

// "all_reduce #12, round 5/7, ring"
std::string position(const Stamp& stamp);

inline constexpr std::string_view kAgree =
    "\n  fix: call the same collectives, in the same order and with equal arguments, on every rank";

// MismatchError, with both sides in it, when `theirs`, which came from `peer`, is not the message
// that `own` expects.
void check_same(const Stamp& own, std::uint64_t own_bytes, const Header& theirs, int peer);

}  // namespace dpcomm
