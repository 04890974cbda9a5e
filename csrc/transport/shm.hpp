#pragma once

#include <memory>
#include <vector>

#include "transport/arena.hpp"
#include "transport/segment.hpp"
#include "transport/shared_memory.hpp"
#include "transport/transport.hpp"

namespace dpcomm {

// Ranks that share memory: processes of one host ("shm") or threads of one process ("local").
// Messages are copied into and out of the pair's stream; direct collectives see the memory itself.
class ShmTransport final : public Transport, public SharedMemory {
 public:
  // `key` names the meeting of the processes; threads have none.
  ShmTransport(std::shared_ptr<Segment> segment, std::string key, int rank, double timeout);
  ~ShmTransport() override { close(); }

  std::string_view name() const override { return key_.empty() ? "local" : "shm"; }
  void exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override;
  void abort(FailureKind kind, std::string_view reason) noexcept override;
  std::shared_ptr<Transport> split(const Stamp& stamp, const std::vector<int>& members) override;
  SharedMemory* shared_memory() override { return this; }
  void check_peers_live(const Stamp& stamp) override;

  std::uint64_t token(const void* data, std::size_t bytes) const override;
  std::byte* at(std::uint64_t token) const override;
  Entry& own() override { return segment_->board(rank()).entries[(directs_ + 1) % 2]; }
  void enter(const Stamp& stamp) override;
  Entry& entry(int peer) override { return segment_->board(peer).entries[directs_ % 2]; }
  void meet(const Stamp& stamp) override;
  std::byte* staging(int peer, int slot) override {
    return segment_->arena(peer) + slot * kSlotStride;
  }
  bool sees_all() const override { return threads_; }
  void* allocate(std::size_t bytes) override { return arena_.allocate(bytes); }
  void release(void* data) noexcept override { arena_.release(data); }

  void close() noexcept override { segment_->leave(rank()); }

 private:
  struct Progress {
    std::size_t moved = 0;
    bool begun = false;  // the header has been written or read
    bool done = false;
  };

  enum class Look { kNothing, kMoved, kDone };

  // Calls `look` until it is done, and rests in between. `peers` calls its argument with each peer
  // that is still awaited.
  template <class LookFn, class PeersFn>
  void wait(const Stamp& stamp, LookFn look, PeersFn peers);
  void await_all(const Stamp& stamp, std::uint64_t target,
                 std::atomic<std::uint64_t>& (*counter)(Segment&, int, std::uint64_t));
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
  std::vector<Progress> sent_;
  std::vector<Progress> received_;
  std::vector<bool> amid_;  // [peer]: what it sent next continues a message
  std::vector<bool> busy_;  // [peer]: an earlier message of the pair is still under way
};

// Ranks 0 to size-1 as threads of this process.
std::vector<std::shared_ptr<Transport>> local_transports(int size, double timeout);

std::shared_ptr<Transport> shm_transport(const Meeting& meeting, double timeout);

}  // namespace dpcomm
