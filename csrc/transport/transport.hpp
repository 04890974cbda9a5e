#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/device.hpp"
#include "base/error.hpp"
#include "transport/stamp.hpp"
#include "transport/vendor.hpp"

namespace dpcomm {

struct Outgoing {
  int peer;
  const void* data;
  std::size_t bytes;
};

struct Incoming {
  int peer;
  void* data;
  std::size_t bytes;
};

// Which error the other ranks raise when one has failed.
enum class FailureKind { kMismatch, kLostPeer, kTimeout };

// A round of messages under way. One that is not finished is given up by its destructor. Both calls
// raise what Transport::exchange raises.
class Flight {
 public:
  Flight() = default;
  virtual ~Flight() = default;
  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;

  virtual void land() = 0;    // returns when every receive has landed
  virtual void finish() = 0;  // after land(): when every send buffer may be changed again
};

class ShmTransport;

// How ranks reach each other: rounds of point-to-point messages. One object a rank and
// communicator; one call at a time.
class Transport {
 public:
  Transport(int rank, int size, double timeout) : rank_(rank), size_(size), timeout_(timeout) {}
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  double timeout() const { return timeout_; }  // seconds
  virtual std::string_view name() const = 0;

  // This transport came of a split: it fails where `whole` fails, and its errors name the ranks as
  // the whole job does.
  void set_whole(std::shared_ptr<Transport> whole, const std::vector<int>& members);
  int job_rank(int peer) const { return job_ranks_.empty() ? peer : job_ranks_[peer]; }

  // All messages of a round, in flight together. Returns when every receive has landed and every
  // send buffer may be changed again. Messages of a pair keep their order. MismatchError when a
  // message carries another stamp or length, LostPeerError when a peer that is waited for has died,
  // TimeoutError at the deadline, and the error of whichever rank called abort().
  virtual void exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                        std::span<const Incoming> receives) = 0;

  // Begins what exchange() does at once. Several rounds may be under way; they land in the order
  // in which they began, and finish in that order. What the spans refer to stays until they land.
  virtual std::unique_ptr<Flight> begin(const Stamp& stamp, std::span<const Outgoing> sends,
                                        std::span<const Incoming> receives);

  // Returns once what the collective's exchanges moved is there, on every rank. Where messages are
  // in the host's memory, exchange() has seen to that.
  virtual void finish(const Stamp&) {}

  // Whose memory messages are in, and what adds them up.
  virtual std::shared_ptr<Device> device() { return host_device(); }

  // Direct access to the peers' memory, where there is one.
  virtual ShmTransport* shared_memory() { return nullptr; }

  // The library's own collectives on shards, where there are any.
  virtual Vendor* vendor() { return nullptr; }

  // A transport among `members`: ranks of this one, in the order of the new one, this rank among
  // them. Each member calls it, in the collective that the stamp names. Over MPI the members meet
  // before the library makes its communicator; if one dies in between, the others' wait is the
  // library's, without a deadline.
  virtual std::shared_ptr<Transport> split(const Stamp& stamp, const std::vector<int>& members) = 0;

  // The all-reduce of the library that carries the messages, for comparison: its own waits, and no
  // promise of equal bits. kMean adds. The check raises UsageError where there is none, or none for
  // this type.
  virtual void check_vendor(DType dtype) const;
  virtual void vendor_all_reduce(const Stamp& stamp, const void* data, void* out);

  // Ends every rank's present and later exchanges with `reason`. The first call of all ranks
  // counts.
  virtual void abort(FailureKind kind, std::string_view reason) noexcept = 0;

  // LostPeerError when a peer has died, where this transport can tell. For those that wait by other
  // means.
  virtual void check_peers_live(const Stamp&) {}

  // Raises what a rank of this transport, or of what it was split from, reported through abort().
  void check_failure() {
    check_own_failure();
    if (whole_) whole_->check_failure();
  }

  // Tells the peers that this rank's part is over: one that still waits for it has lost it, but its
  // end is no accident. Nothing else may be called after it.
  virtual void close() noexcept {}

  // Called now and then by a rank that waits; what it throws ends the wait (Ctrl-C).
  void on_wait(std::function<void()> callback) { on_wait_ = std::move(callback); }
  const std::function<void()>& wait_callback() const { return on_wait_; }

 protected:
  virtual void check_own_failure() = 0;

  void waiting() const {
    if (on_wait_) on_wait_();
  }

 private:
  int rank_;
  int size_;
  double timeout_;
  std::function<void()> on_wait_;
  std::shared_ptr<Transport> whole_;
  std::vector<int> job_ranks_;  // empty: our own
};

// Raises what another rank reported through abort().
[[noreturn]] void throw_failure(FailureKind kind, int rank, std::string_view reason);

// The texts of the errors that every transport raises.
TimeoutError timeout_error(const Transport& transport, const Stamp& stamp, int peer,
                           std::string_view last_seen);
LostPeerError lost_peer_error(const Transport& transport, const Stamp& stamp, int peer,
                              std::string_view how);

}  // namespace dpcomm
