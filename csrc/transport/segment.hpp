#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "transport/bell.hpp"
#include "transport/cores.hpp"
#include "transport/entry.hpp"
#include "transport/rendezvous.hpp"
#include "transport/stamp.hpp"

namespace dpcomm {

// What a rank shows to its peers.
struct alignas(64) Member {
  std::atomic<std::int32_t> pid{0};    // what is shown with it is there once this is
  std::atomic<std::uint64_t> born{0};  // start time in ticks since boot: pids are used again
  std::atomic<bool> left{false};
  std::atomic<std::uint64_t> doing{0};  // operation and sequence, see pack_doing()
  Bell bell;
  cpu_set_t cores;  // that it may run on
};

// The first failure of any rank, for all to read.
struct alignas(64) Failure {
  std::atomic<std::uint32_t> state{0};  // 0 none, 1 being written, 2 there
  std::int32_t rank = 0;
  std::int32_t kind = 0;
  char reason[2032] = {};
};

// A byte stream from one rank to another. Positions only grow; both are multiples of a cache line.
struct ByteStream {
  alignas(64) std::atomic<std::uint64_t> written{0};
  alignas(64) std::atomic<std::uint64_t> read{0};
};

// What a rank shows in direct collectives.
struct Board {
  Entry entries[2];
  alignas(64) std::atomic<std::uint64_t> met{0};
};

// The memory that the ranks of one host share: members, the failure, a stream for each ordered
// pair, boards, and an arena of each rank. For threads of one process it is plain memory, and has
// no arenas, for they see all of each other's; for processes see rendezvous.hpp. Pages that nobody
// touches take no memory: an arena may be as large as the machine's, up to 4 TiB over all ranks.
class Segment {
 public:
  static std::shared_ptr<Segment> of_threads(int size);
  static std::shared_ptr<Segment> of_processes(const Meeting& meeting);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  int size() const { return size_; }
  // Ranks must share cores. The same on all ranks, for it selects algorithms.
  bool crowded() const { return crowded_; }
  Failure& failure() { return *reinterpret_cast<Failure*>(base_); }
  Member& member(int rank) { return members()[rank]; }
  ByteStream& stream(int from, int to) { return streams()[from * size_ + to]; }
  std::byte* stream_bytes(int from, int to) {
    return base_ + layout_.bytes + (from * size_ + to) * layout_.capacity;
  }
  std::size_t stream_capacity() const { return layout_.capacity; }
  Board& board(int rank) { return reinterpret_cast<Board*>(base_ + layout_.boards)[rank]; }
  std::byte* arena(int rank) { return base_ + layout_.arenas + rank * layout_.arena_bytes; }
  std::size_t arena_bytes() const { return layout_.arena_bytes; }
  std::byte* base() { return base_; }

  // Says that `rank` is done here. A forked copy of its process says nothing.
  void leave(int rank);

  // Why `rank` will never send again ("was killed or crashed (pid 12)"), or an empty string.
  std::string gone(int rank);

 private:
  struct Layout {  // offsets from the base
    Layout(int size, bool threads);
    std::size_t capacity;  // of a stream
    std::size_t arena_bytes;
    std::size_t members, streams, bytes, boards, arenas, end;
  };

  Segment(std::byte* base, int size, bool threads);
  void await_members(const Meeting& meeting);  // until every rank has said who it is
  Member* members() { return reinterpret_cast<Member*>(base_ + layout_.members); }
  ByteStream* streams() { return reinterpret_cast<ByteStream*>(base_ + layout_.streams); }

  std::byte* base_;
  int size_;
  bool threads_;
  bool crowded_ = false;
  Layout layout_;
};

inline std::uint64_t pack_doing(const Stamp& stamp) {
  return stamp.sequence << 8 | static_cast<std::uint64_t>(stamp.operation);
}
std::string describe_doing(std::uint64_t doing);  // "all_gather #1041"

}  // namespace dpcomm
