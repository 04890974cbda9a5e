#pragma once

#include <memory>
#include <vector>

#include "base/cache.hpp"
#include "transport/arena.hpp"
#include "transport/segment.hpp"
#include "transport/transport.hpp"

namespace dpcomm {

// Ranks that share memory: processes of one host ("shm") or threads of one process ("local").
// Messages are copied into and out of the pair's stream; direct collectives see the memory itself.
//
// A direct collective of every rank is: fill own(), enter(), work, and meet() where others' memory
// must be left alone again. Entries are used in turns of two: who has seen all entries of one
// collective knows that everybody is done with those of the one before.
class ShmTransport final : public Transport {
 public:
  static constexpr std::uint64_t kPrivate = ~std::uint64_t{0};
  static constexpr int kSlots = 2;
  static constexpr std::size_t kSlotBytes = std::size_t{512} << 10;
  static constexpr std::size_t kSlotStride = kSlotBytes + kPage;  // for a lead

  // `key` names the meeting of the processes; threads have none.
  ShmTransport(std::shared_ptr<Segment> segment, std::string key, int rank, double timeout);
  ~ShmTransport() override { close(); }

  std::string_view name() const override { return key_.empty() ? "local" : "shm"; }
  void exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override;
  void abort(FailureKind kind, std::string_view reason) noexcept override;
  std::shared_ptr<Transport> split(const Stamp& stamp, const std::vector<int>& members) override;
  ShmTransport* shared_memory() override { return this; }
  void check_peers_live(const Stamp& stamp) override;

  // What peers find [data, data + bytes) by; kPrivate where they cannot see it.
  std::uint64_t token(const void* data, std::size_t bytes) const;
  std::byte* at(std::uint64_t token) const {
    return threads_ ? reinterpret_cast<std::byte*>(token) : segment_->base() + token;
  }

  // Of the next direct collective, and of the present one.
  Entry& own() { return segment_->board(rank()).entries[(directs_ + 1) % 2]; }
  Entry& entry(int peer) { return segment_->board(peer).entries[directs_ % 2]; }
  // Posts own(), and returns when all ranks have posted theirs. Raises what exchange() raises.
  void enter(const Stamp& stamp);
  void meet(const Stamp& stamp);
  // kSlots a rank, of kSlotBytes and a lead each, for buffers that peers cannot see.
  std::byte* staging(int peer, int slot) { return segment_->arena(peer) + slot * kSlotStride; }

  bool sees_all() const { return threads_; }  // any buffer
  // Memory that peers see, zeroed, on a cache line; nullptr when there is no more.
  void* allocate(std::size_t bytes) { return arena_.allocate(bytes); }
  void release(void* data) noexcept { arena_.release(data); }

  void close() noexcept override { segment_->leave(rank()); }

 private:
  struct Progress {
    std::size_t moved = 0;
    bool begun = false;  // the header has been written or read
    bool done = false;
  };

  enum class Look { kNothing, kMoved, kDone };

  // After a look that found `found`, calls `look` until it is done, and rests in between. `peers`
  // calls its argument with each peer that is still awaited.
  template <class LookFn, class PeersFn>
  void wait(const Stamp& stamp, Look found, LookFn look, PeersFn peers);
  template <class CounterFn>
  void await_all(const Stamp& stamp, std::uint64_t target, CounterFn counter);
  void ring_all();
  bool move_all(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives);
  bool push(const Stamp& stamp, const Outgoing& send, Progress& progress);
  bool pull(const Stamp& stamp, const Incoming& receive, Progress& progress);
  void check_own_failure() override;
  void check_peers(const Stamp& stamp) const;

  std::shared_ptr<Segment> segment_;
  std::string key_;
  bool threads_;
  Arena arena_;
  std::uint64_t directs_ = 0;  // direct collectives posted
  std::uint64_t meetings_ = 0;
  Tact tact_;
  std::vector<Progress> sent_;
  std::vector<Progress> received_;
  std::vector<bool> amid_;  // [peer]: what it sent next continues a message
  std::vector<bool> busy_;  // [peer]: an earlier message of the pair is still under way
};

// Ranks 0 to size-1 as threads of this process.
std::vector<std::shared_ptr<Transport>> local_transports(int size, double timeout);

std::shared_ptr<Transport> shm_transport(const Meeting& meeting, double timeout);

}  // namespace dpcomm
