#pragma once

#include <memory>
#include <vector>

#include "transport/segment.hpp"
#include "transport/transport.hpp"

namespace dpcomm {

// Ranks that share memory: processes of one host ("shm") or threads of one process ("local").
// Messages are copied into and out of the pair's stream.
class ShmTransport final : public Transport {
 public:
  ShmTransport(std::shared_ptr<Segment> segment, std::string_view name, int rank, double timeout);
  ~ShmTransport() override { close(); }

  std::string_view name() const override { return name_; }
  void exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override;
  void abort(FailureKind kind, std::string_view reason) noexcept override;
  void close() noexcept override { segment_->leave(rank()); }

 private:
  struct Progress {
    std::size_t moved = 0;
    bool begun = false;  // the header has been written or read
    bool done = false;
  };

  bool move_all(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives);
  bool push(const Stamp& stamp, const Outgoing& send, Progress& progress);
  bool pull(const Stamp& stamp, const Incoming& receive, Progress& progress);
  void check_failure() const;
  void check_peers(const Stamp& stamp, std::span<const Incoming> receives) const;

  std::shared_ptr<Segment> segment_;
  std::string_view name_;
  std::vector<Progress> sent_;
  std::vector<Progress> received_;
  std::vector<bool> busy_;  // [peer]: an earlier message of the pair is still under way
};

// Ranks 0 to size-1 as threads of this process.
std::vector<std::shared_ptr<Transport>> local_transports(int size, double timeout);

std::shared_ptr<Transport> shm_transport(const Meeting& meeting, double timeout);

}  // namespace dpcomm
