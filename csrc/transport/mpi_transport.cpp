#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "transport/cores.hpp"
#include "transport/mpi.hpp"
#include "transport/mpi_calls.hpp"

namespace dpcomm::mpi {
namespace {

using Clock = std::chrono::steady_clock;

enum Tag { kHeader, kData, kAbort };

// Short messages travel behind their header, in one message.
constexpr std::size_t kInline = 4096;
constexpr std::size_t kReason = 2048;

// Looks before a wait yields, and sleeps. MPI moves messages only while somebody looks; some yield
// in each look where ranks outnumber cores, so that ours come between several.
constexpr int kSpins = 50000;
constexpr int kYields = 5000;
constexpr int kLooksAYield = 8;

// Whoever waits asks whether a rank has failed. Who need not wait asks when it has not for so long,
// and not in each round: where ranks outnumber cores MPI yields in every such question.
constexpr std::chrono::milliseconds kUnasked{50};

constexpr std::size_t kLongest = std::size_t{1} << 30;  // MPI counts by int

// Both ends cut what is long alike. What is empty is one piece.
template <class Post>
void in_pieces(std::size_t count, Post post) {
  std::size_t begin = 0;
  do {
    const std::size_t piece = std::min(count - begin, kLongest);
    post(begin, static_cast<int>(piece));
    begin += piece;
  } while (begin < count);
}

struct Packet {
  Header header;
  std::array<std::byte, kInline> payload;
};

// The first message of a pair, one way, in the latest collective that had any.
struct First {
  std::uint64_t sequence = 0;
  Packet packet;
};

struct Note {  // what abort() sends
  FailureKind kind;
  char reason[kReason];
};

MPI_Datatype type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return MPI_DOUBLE;
    case DType::kFloat32:
      return MPI_FLOAT;
    case DType::kInt64:
      return MPI_INT64_T;
    case DType::kInt32:
      return MPI_INT32_T;
    case DType::kUInt8:
      return MPI_UINT8_T;
    case DType::kBFloat16:
    case DType::kFloat16:
      break;  // MPI 4 has neither
  }
  return MPI_DATATYPE_NULL;
}

MPI_Op op_of(RedOp redop) {
  return redop == RedOp::kMax ? MPI_MAX : redop == RedOp::kMin ? MPI_MIN : MPI_SUM;
}

// The first message of a pair in a collective is headed, and carries its data too where that is
// short. What follows is data alone: ranks that agree on the header agree on the whole schedule.
class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm comm, int own, int ranks, bool crowded, double timeout)
      : Transport(own, ranks, timeout), comm_(comm), crowded_(crowded) {}

  ~MpiTransport() override {
    if (running()) MPI_Comm_free(&comm_);
  }

  std::string_view name() const override { return "mpi"; }

  void exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override {
    Messages messages(*this, stamp, sends, receives);
    messages.land();
    messages.finish();
  }

  std::unique_ptr<Flight> begin(const Stamp& stamp, std::span<const Outgoing> sends,
                                std::span<const Incoming> receives) override {
    return std::make_unique<Messages>(*this, stamp, sends, receives);
  }

  std::shared_ptr<Transport> split(const Stamp& stamp, const std::vector<int>& members) override {
    meet(stamp, members);
    MPI_Group all, some;
    MPI_Comm comm;
    check(MPI_Comm_group(comm_, &all), "MPI_Comm_group");
    check(MPI_Group_incl(all, int_of(members.size()), members.data(), &some), "MPI_Group_incl");
    check(MPI_Comm_create_group(comm_, some, static_cast<int>(stamp.sequence % 32768), &comm),
          "MPI_Comm_create_group");
    check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    MPI_Group_free(&all);
    MPI_Group_free(&some);
    const auto place = std::find(members.begin(), members.end(), rank()) - members.begin();
    auto made = std::make_shared<MpiTransport>(comm, static_cast<int>(place),
                                               int_of(members.size()), crowded_, timeout());
    made->on_wait(wait_callback());
    return made;
  }

  void check_vendor(DType dtype) const override {
    DPCOMM_CHECK(type_of(dtype) != MPI_DATATYPE_NULL, UsageError, "rank ", rank(), "/", size(),
                 ": MPI_Allreduce does not add ", name_of(dtype), ": give another algo");
  }

  void vendor_all_reduce(const Stamp& stamp, const void* data, void* out) override {
    in_pieces(stamp.count, [&](std::size_t begin, int piece) {
      const std::size_t skip = begin * size_of(stamp.dtype);
      check(MPI_Allreduce(data == out ? MPI_IN_PLACE : static_cast<const std::byte*>(data) + skip,
                          static_cast<std::byte*>(out) + skip, piece, type_of(stamp.dtype),
                          op_of(stamp.redop), comm_),
            "MPI_Allreduce");
    });
  }

  void abort(FailureKind kind, std::string_view reason) noexcept override {
    if (!running()) return;
    {
      const std::lock_guard lock(failure_mutex_);
      if (failed_by_ >= 0) return;  // the others have been told
      failed_by_ = rank();
      note_.kind = kind;
      note_.reason[reason.copy(note_.reason, kReason - 1)] = '\0';
    }
    std::vector<MPI_Request> requests;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      MPI_Isend(&note_, sizeof(note_), MPI_BYTE, peer, kAbort, comm_, &requests.emplace_back());
    }
    // Peers may be dead: give the notes a moment to leave, then let them be.
    const auto until = Clock::now() + std::chrono::milliseconds(500);
    for (int all = 0; !all && Clock::now() < until;) {
      MPI_Testall(int_of(requests.size()), requests.data(), &all, MPI_STATUSES_IGNORE);
    }
    for (MPI_Request& request : requests) {
      if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
    }
  }

 private:
  class Messages final : public Flight {
   public:
    Messages(MpiTransport& over, const Stamp& stamp, std::span<const Outgoing> sends,
             std::span<const Incoming> receives)
        : over_(over),
          stamp_(stamp),
          sent_(Requests::Kind::kSends, 2 * sends.size()),
          received_(Requests::Kind::kReceives, 2 * receives.size()) {
      if (over_.must_ask()) over_.check_failure();
      // Sends first: MPI copies what has come in whichever call comes next, and a peer that has not
      // heard of our message meanwhile has nothing to copy.
      for (const Outgoing& send : sends) post(send);
      for (const Incoming& receive : receives) post(receive);
    }

    void land() override {
      wait(received_);
      check_headers();
      for (const Headed& first : headed_) {
        if (first.receive.bytes > 0 && first.receive.bytes <= kInline) {
          std::memcpy(first.receive.data, packet(first).payload.data(), first.receive.bytes);
        }
      }
    }

    void finish() override { wait(sent_); }

   private:
    // The first message of a peer.
    struct Headed {
      Incoming receive;
      std::size_t request;
    };

    const Packet& packet(const Headed& first) const {
      return over_.from_.at(first.receive.peer).packet;
    }

    // Of those that have come. Nobody waits for headers alone, which would cost a short message's
    // time in each round with a new peer.
    void check_headers() {
      for (const Headed& first : headed_) {
        if (!received_.done(first.request)) continue;
        check_same(stamp_, first.receive.bytes, packet(first).header,
                   over_.job_rank(first.receive.peer));
      }
    }

    // A message that is not the expected one may never come, or not fit: headers tell why.
    void wait(Requests& pending) {
      Clock::time_point since{};
      for (int looks = 0;; ++looks) {
        bool done = false;
        if (const int code = pending.test_all(done); code != MPI_SUCCESS) {
          check_headers();
          check(code, "MPI_Testall");
        }
        if (done) return;
        if (!over_.crowded_ && looks < kSpins) continue;
        if (looks < kSpins + kYields * kLooksAYield) {
          if (looks % kLooksAYield == 0) sched_yield();
          continue;
        }
        ::usleep(100);
        check_headers();
        if (looks % 256 != 0) continue;
        if (since == Clock::time_point{}) since = Clock::now();
        over_.check_failure();
        over_.waiting();
        if (std::chrono::duration<double>(Clock::now() - since).count() < over_.timeout()) continue;
        over_.check_unexpected(stamp_);
        // Who takes nothing is late more surely than who sends nothing, and may wait itself.
        int awaited = sent_.first_awaited();
        if (awaited < 0) awaited = received_.first_awaited();
        if (awaited >= 0) throw timeout_error(over_, stamp_, awaited, "");
      }
    }

    void post(const Incoming& receive) {
      First& from = over_.from_[receive.peer];
      const bool first = std::exchange(from.sequence, stamp_.sequence) != stamp_.sequence;
      if (first) {
        // Room for more than is expected, so that a longer message can be named.
        check(MPI_Irecv(&from.packet, sizeof(Packet), MPI_BYTE, receive.peer, kHeader, over_.comm_,
                        received_.add(receive.peer)),
              "MPI_Irecv");
        headed_.push_back({receive, received_.size() - 1});
      }
      if (first && receive.bytes <= kInline) return;
      in_pieces(receive.bytes, [&](std::size_t begin, int piece) {
        check(MPI_Irecv(static_cast<std::byte*>(receive.data) + begin, piece, MPI_BYTE,
                        receive.peer, kData, over_.comm_, received_.add(receive.peer)),
              "MPI_Irecv");
      });
    }

    void post(const Outgoing& send) {
      First& to = over_.to_[send.peer];
      const bool first = std::exchange(to.sequence, stamp_.sequence) != stamp_.sequence;
      if (first) {
        to.packet.header = {stamp_, send.bytes};
        std::size_t length = sizeof(Header);
        if (send.bytes <= kInline) {
          if (send.bytes > 0) std::memcpy(to.packet.payload.data(), send.data, send.bytes);
          length += send.bytes;
        }
        check(MPI_Isend(&to.packet, int_of(length), MPI_BYTE, send.peer, kHeader, over_.comm_,
                        sent_.add(send.peer)),
              "MPI_Isend");
      }
      if (first && send.bytes <= kInline) return;
      in_pieces(send.bytes, [&](std::size_t begin, int piece) {
        check(MPI_Isend(static_cast<const std::byte*>(send.data) + begin, piece, MPI_BYTE,
                        send.peer, kData, over_.comm_, sent_.add(send.peer)),
              "MPI_Isend");
      });
    }

    MpiTransport& over_;
    Stamp stamp_;
    std::vector<Headed> headed_;
    Requests sent_;
    Requests received_;
  };

  // Returns once every member has come.
  void meet(const Stamp& stamp, const std::vector<int>& members) {
    std::vector<Outgoing> sends;
    std::vector<Incoming> receives;
    for (int peer : members) {
      if (peer == rank()) continue;
      sends.push_back({peer, nullptr, 0});
      receives.push_back({peer, nullptr, 0});
    }
    exchange(stamp, sends, receives);
  }

  // Takes a message that is there and that no receive waits for. Its sender, or -1.
  template <class Message>
  int take(Tag tag, Message& message) {
    int there = 0;
    MPI_Message found;
    MPI_Status status;
    for (int look = 0; look < 2 && !there; ++look) {  // the first may do no more than bring it here
      check(MPI_Improbe(MPI_ANY_SOURCE, tag, comm_, &there, &found, &status), "MPI_Improbe");
    }
    if (!there) return -1;
    check(MPI_Mrecv(&message, sizeof(message), MPI_BYTE, &found, MPI_STATUS_IGNORE), "MPI_Mrecv");
    return status.MPI_SOURCE;
  }

  bool must_ask() {
    const std::lock_guard lock(failure_mutex_);
    return failed_by_ >= 0 || Clock::now() > asked_ + kUnasked;
  }

  void check_own_failure() override {
    const std::lock_guard lock(failure_mutex_);  // a split's waits look here too
    if (failed_by_ < 0) failed_by_ = take(kAbort, note_);
    if (failed_by_ >= 0) throw_failure(note_.kind, job_rank(failed_by_), note_.reason);
    asked_ = Clock::now();
  }

  // At the deadline: a message that nobody asked for says what its sender is doing.
  void check_unexpected(const Stamp& stamp) {
    Packet packet;
    const int peer = take(kHeader, packet);
    if (peer < 0) return;
    packet.header.stamp.round = stamp.round;
    check_same(stamp, packet.header.bytes, packet.header, job_rank(peer));
  }

  MPI_Comm comm_;
  bool crowded_;
  std::mutex failure_mutex_;
  int failed_by_ = -1;  // the rank whose failure `note_` tells, once there is one
  Note note_{};
  Clock::time_point asked_{};  // the latest time, and nobody had failed
  std::map<int, First> to_;    // [peer]
  std::map<int, First> from_;
};

// Whether ranks of this host must share cores. Collective.
bool crowded_host() {
  MPI_Comm host;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
        "MPI_Comm_split_type");
  int ranks = 0;
  MPI_Comm_size(host, &ranks);
  const cpu_set_t own = own_cores();
  std::vector<cpu_set_t> all(ranks);
  check(MPI_Allgather(&own, sizeof(own), MPI_BYTE, all.data(), sizeof(own), MPI_BYTE, host),
        "MPI_Allgather");
  MPI_Comm_free(&host);
  return crowded(all);
}

}  // namespace

std::shared_ptr<Transport> transport(double timeout) {
  MPI_Comm comm;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  return std::make_shared<MpiTransport>(comm, rank(), size(), crowded_host(), timeout);
}

}  // namespace dpcomm::mpi
