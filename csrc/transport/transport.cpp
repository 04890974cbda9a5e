#include "transport/transport.hpp"

namespace dpcomm {

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
  return TimeoutError(concat("timeout ", transport.timeout(), " s in ", position(stamp), " over ",
                             transport.name(), "\n  waiting for rank ", peer,
                             last_seen.empty() ? "" : ", last seen in ", last_seen,
                             "\n  fix: see rank ", peer,
                             "'s log above; rerun with DPCOMM_DEBUG=INFO, or raise --timeout"));
}

LostPeerError lost_peer_error(const Transport& transport, const Stamp& stamp, int peer,
                              std::string_view how) {
  return LostPeerError(concat("lost rank ", peer, " in ", position(stamp), " over ",
                              transport.name(), "\n  rank ", peer, " ", how, "\n  fix: see rank ",
                              peer,
                              "'s log above, or the kernel's (out of memory?); then --resume"));
}

}  // namespace dpcomm
