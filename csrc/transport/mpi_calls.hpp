#pragma once

#ifdef DPCOMM_MPI_ABI
#include <mpi_abi.h>
#else
#include <mpi.h>
#endif

#include <vector>

#include "base/error.hpp"

// What all our calls of MPI share.

namespace dpcomm::mpi {

inline void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw LostPeerError(concat(call, ": ", std::string_view(text, length),
                             "\n  fix: see the other ranks' logs above"));
}

inline int int_of(std::size_t count) {
  DPCOMM_CHECK(count <= 0x7fffffff, UsageError, "MPI counts to 2^31 - 1, not to ", count);
  return static_cast<int>(count);
}

// Requests under way, all sends or all receives, and the peer of each. Those left when a wait
// throws are given up: receives are cancelled, for their memory is not to be written any more; a
// send that has begun may not be.
class Requests {
 public:
  enum class Kind { kSends, kReceives };

  Requests(Kind kind, std::size_t expected) : kind_(kind) {
    requests_.reserve(expected);
    peers_.reserve(expected);
  }
  ~Requests() {
    for (MPI_Request& request : requests_) {
      if (request == MPI_REQUEST_NULL) continue;
      if (kind_ == Kind::kReceives) MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
  }

  MPI_Request* add(int peer) {
    peers_.push_back(peer);
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  std::size_t size() const { return requests_.size(); }

  // The state of all; what MPI says is for check().
  int test_all(bool& done) {
    int all = 0;
    const int code =
        MPI_Testall(int_of(requests_.size()), requests_.data(), &all, MPI_STATUSES_IGNORE);
    done = all;
    return code;
  }

  bool done(std::size_t index) {
    int ended = 0;
    check(MPI_Request_get_status(requests_[index], &ended, MPI_STATUS_IGNORE),
          "MPI_Request_get_status");
    return ended;
  }

  // The peer of the first that is not done, or -1. test_all() ends all of them or none.
  int first_awaited() {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      int ended = 0;
      check(MPI_Test(&requests_[i], &ended, MPI_STATUS_IGNORE), "MPI_Test");
      if (!ended) return peers_[i];
    }
    return -1;
  }

 private:
  Kind kind_;
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_;
};

}  // namespace dpcomm::mpi
