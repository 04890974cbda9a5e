#include "transport/transport.hpp"

namespace dpcomm {
namespace {

// Where there is nothing to begin ahead of the exchange.
class Later final : public Flight {
 public:
  Later(Transport& transport, const Stamp& stamp, std::span<const Outgoing> sends,
        std::span<const Incoming> receives)
      : transport_(transport), stamp_(stamp), sends_(sends), receives_(receives) {}

  void land() override { transport_.exchange(stamp_, sends_, receives_); }
  void finish() override {}

 private:
  Transport& transport_;
  Stamp stamp_;
  std::span<const Outgoing> sends_;
  std::span<const Incoming> receives_;
};

}  // namespace

std::unique_ptr<Flight> Transport::begin(const Stamp& stamp, std::span<const Outgoing> sends,
                                         std::span<const Incoming> receives) {
  return std::make_unique<Later>(*this, stamp, sends, receives);
}

void Transport::set_whole(std::shared_ptr<Transport> whole, const std::vector<int>& members) {
  for (int member : members) job_ranks_.push_back(whole->job_rank(member));
  whole_ = std::move(whole);
}

void Transport::check_vendor(DType) const {
  throw UsageError(
      concat("rank ", rank_, "/", size_,
             ": algo 'mpi' is MPI_Allreduce, but this communicator is over ", name(),
             "\n  fix: start the ranks by mpirun and call dpcomm.init(transport='mpi'), "
             "or give another algo"));
}

void Transport::vendor_all_reduce(const Stamp& stamp, const void*, void*) {
  check_vendor(stamp.dtype);
}

void throw_failure(FailureKind kind, int rank, std::string_view reason) {
  const std::string text = concat("rank ", rank, " ended the job: ", reason);
  switch (kind) {
    case FailureKind::kMismatch:
      throw MismatchError(text);
    case FailureKind::kTimeout:
      throw TimeoutError(text);
    case FailureKind::kLostPeer:
      throw LostPeerError(text);
  }
  throw LostPeerError(text);
}

TimeoutError timeout_error(const Transport& transport, const Stamp& stamp, int peer,
                           std::string_view last_seen) {
  const int late = transport.job_rank(peer);
  return TimeoutError(concat("timeout ", transport.timeout(), " s in ", position(stamp), " over ",
                             transport.name(), "\n  waiting for rank ", late,
                             last_seen.empty() ? "" : ", last seen in ", last_seen,
                             "\n  fix: see rank ", late,
                             "'s log above; rerun with DPCOMM_DEBUG=INFO, or with more time: "
                             "DPCOMM_TIMEOUT=",
                             2 * transport.timeout()));
}

LostPeerError lost_peer_error(const Transport& transport, const Stamp& stamp, int peer,
                              std::string_view how) {
  const int lost = transport.job_rank(peer);
  return LostPeerError(concat("lost rank ", lost, " in ", position(stamp), " over ",
                              transport.name(), "\n  rank ", lost, " ", how, "\n  fix: see rank ",
                              lost,
                              "'s log above, or the kernel's (out of memory?); then --resume"));
}

}  // namespace dpcomm
