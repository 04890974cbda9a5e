#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "transport/bell.hpp"
#include "transport/rendezvous.hpp"
#include "transport/stamp.hpp"

namespace dpcomm {

// What a rank shows to its peers.
struct alignas(64) Member {
  std::atomic<std::int32_t> pid{0};
  std::atomic<std::uint64_t> born{0};  // start time in ticks since boot: pids are used again
  std::atomic<bool> left{false};
  std::atomic<std::uint64_t> doing{0};  // operation and sequence, see pack_doing()
  Bell bell;
};

// The first failure of any rank, for all to read.
struct alignas(64) Failure {
  std::atomic<std::uint32_t> state{0};  // 0 none, 1 being written, 2 there
  std::int32_t rank = 0;
  std::int32_t kind = 0;
  char reason[2032] = {};
};

// A byte stream from one rank to another. Positions only grow; both are multiples of a cache line.
struct Stream {
  alignas(64) std::atomic<std::uint64_t> written{0};
  alignas(64) std::atomic<std::uint64_t> read{0};
};

// The memory that the ranks of one host share: members, the failure, and a stream for each ordered
// pair. For threads of one process it is plain memory; for processes see rendezvous.hpp.
class Segment {
 public:
  static std::shared_ptr<Segment> of_threads(int size);
  static std::shared_ptr<Segment> of_processes(const Meeting& meeting);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  int size() const { return size_; }
  bool crowded() const { return crowded_; }  // more ranks than cores
  Failure& failure() { return *reinterpret_cast<Failure*>(base_); }
  Member& member(int rank) { return members()[rank]; }
  Stream& stream(int from, int to) { return streams()[from * size_ + to]; }
  std::byte* stream_bytes(int from, int to);
  std::size_t stream_capacity() const { return capacity_; }

  // Says that `rank` is done here. A forked copy of its process says nothing.
  void leave(int rank);

  // Why `rank` will never send again ("was killed or crashed (pid 12)"), or an empty string.
  std::string gone(int rank);

 private:
  Segment(std::byte* base, int size, bool threads);
  void await_members(const Meeting& meeting);  // until every rank has said who it is
  static std::size_t bytes_for(int size);
  Member* members() { return reinterpret_cast<Member*>(base_ + sizeof(Failure)); }
  Stream* streams() { return reinterpret_cast<Stream*>(members() + size_); }

  std::byte* base_;
  int size_;
  bool threads_;
  bool crowded_;
  std::size_t capacity_;
};

inline std::uint64_t pack_doing(const Stamp& stamp) {
  return stamp.sequence << 8 | static_cast<std::uint64_t>(stamp.operation);
}
std::string describe_doing(std::uint64_t doing);  // "all_gather #1041"

}  // namespace dpcomm
