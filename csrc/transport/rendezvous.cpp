#include "transport/rendezvous.hpp"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.hpp"

namespace dpcomm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kSlice{100};
constexpr std::uint32_t kVersion = 1;  // of the hello and of the segment's layout

struct Hello {
  char magic[8] = {'d', 'p', 'c', 'o', 'm', 'm', 0, 0};
  std::uint32_t version = kVersion;
  std::int32_t rank = 0;
  std::int32_t size = 0;
  std::int32_t accepted = 0;  // in the answer
  std::uint64_t bytes = 0;
};

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

[[noreturn]] void fail(const char* what) {
  throw EnvironmentError(concat("shared memory: ", what, ": ", std::strerror(errno),
                                "\n  fix: rerun with --transport mpi, or see the limits of this "
                                "container (ulimit -a, memory)"));
}

Descriptor open_socket() {
  Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) fail("socket");
  return socket;
}

// An abstract address: a leading zero byte, then the name.
std::pair<sockaddr_un, socklen_t> address_of(const std::string& key) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = concat("dpcomm.", ::getuid(), ".", key);
  DPCOMM_CHECK(name.size() + 1 <= sizeof(address.sun_path), UsageError, "the rendezvous key '", key,
               "' is too long");
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())};
}

bool same_user(int socket) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
         peer.uid == ::getuid();
}

// Waits until there is something to read; false at the deadline.
bool readable(int socket, Clock::time_point deadline, const std::function<void()>& on_wait) {
  for (;;) {
    pollfd entry{.fd = socket, .events = POLLIN};
    const int ready = ::poll(&entry, 1, static_cast<int>(kSlice.count()));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) fail("poll");
    if (on_wait) on_wait();
    if (Clock::now() >= deadline) return false;
  }
}

void send_answer(int socket, const Hello& answer, int memory) {
  Hello copy = answer;
  iovec part{.iov_base = &copy, .iov_len = sizeof(copy)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (memory >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(head), &memory, sizeof(memory));
  }
  // A peer that is gone by now is found missing by whoever waits for it.
  [[maybe_unused]] const auto sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
}

Descriptor receive_answer(int socket, Hello& answer) {
  iovec part{.iov_base = &answer, .iov_len = sizeof(answer)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof(answer))) {
    throw LostPeerError("rank 0 ended while the ranks met: see its log above");
  }
  const cmsghdr* head = CMSG_FIRSTHDR(&message);
  int memory = -1;
  if (head && head->cmsg_type == SCM_RIGHTS) std::memcpy(&memory, CMSG_DATA(head), sizeof(memory));
  return Descriptor(memory);
}

std::string names_of(const std::vector<bool>& came) {
  std::string names;
  for (std::size_t rank = 1; rank < came.size(); ++rank) {
    if (!came[rank]) names += concat(names.empty() ? "" : ", ", rank);
  }
  return names;
}

int host(const Meeting& meeting, std::size_t bytes, Clock::time_point deadline) {
  Descriptor memory(::memfd_create("dpcomm", MFD_CLOEXEC));
  if (memory.get() < 0) fail("memfd_create");
  if (::ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0) fail("ftruncate");
  if (meeting.size == 1) return memory.release();

  const Descriptor door = open_socket();
  const auto [address, length] = address_of(meeting.key);
  if (::bind(door.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    fail("another job on this host meets under the same name; bind");
  }
  if (::listen(door.get(), meeting.size) != 0) fail("listen");

  std::vector<bool> came(meeting.size);
  std::vector<Descriptor> guests;
  while (static_cast<int>(guests.size()) < meeting.size - 1) {
    DPCOMM_CHECK(
        readable(door.get(), deadline, meeting.on_wait), TimeoutError, "timeout ", meeting.timeout,
        " s while the ranks met\n  missing: rank ", names_of(came), " of ", meeting.size,
        "\n  fix: see their logs above, or give more time: DPCOMM_TIMEOUT=", 2 * meeting.timeout);
    Descriptor guest(::accept4(door.get(), nullptr, nullptr, SOCK_CLOEXEC));
    Hello hello;
    if (guest.get() < 0 || !same_user(guest.get()) ||
        !readable(guest.get(), deadline, meeting.on_wait) ||
        ::recv(guest.get(), &hello, sizeof(hello), 0) != sizeof(hello) ||
        std::memcmp(hello.magic, Hello{}.magic, sizeof(hello.magic)) != 0) {
      continue;  // a stranger
    }
    const bool fits = hello.version == kVersion && hello.size == meeting.size && hello.rank > 0 &&
                      hello.rank < meeting.size && !came[hello.rank] && hello.bytes == bytes;
    if (!fits) {
      send_answer(guest.get(), Hello{.size = meeting.size, .bytes = bytes}, -1);
      throw MismatchError(concat(
          "a process came as rank ", hello.rank, " of ", hello.size, " to a job of ", meeting.size,
          came[std::clamp(hello.rank, 0, meeting.size - 1)] ? " where that rank is taken" : "",
          "\n  fix: start every rank with the same launcher, version and settings"));
    }
    came[hello.rank] = true;
    guests.push_back(std::move(guest));
  }
  for (const Descriptor& guest : guests) {
    send_answer(guest.get(), Hello{.size = meeting.size, .accepted = 1, .bytes = bytes},
                memory.get());
  }
  return memory.release();
}

int visit(const Meeting& meeting, std::size_t bytes, Clock::time_point deadline) {
  const auto [address, length] = address_of(meeting.key);
  Descriptor door = open_socket();
  while (::connect(door.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    if (errno != ECONNREFUSED && errno != EINTR && errno != EAGAIN) fail("connect");
    if (meeting.on_wait) meeting.on_wait();
    DPCOMM_CHECK(Clock::now() < deadline, TimeoutError, "timeout ", meeting.timeout,
                 " s while the ranks met\n  waiting for rank 0, which never came to ", meeting.key,
                 "\n  fix: see rank 0's log above; are all ranks on one host?");
    ::usleep(5000);
    door = open_socket();
  }
  DPCOMM_CHECK(same_user(door.get()), EnvironmentError, "the rendezvous ", meeting.key,
               " is held by another user: refused");
  const Hello hello{.rank = meeting.rank, .size = meeting.size, .bytes = bytes};
  if (::send(door.get(), &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello)) {
    throw LostPeerError("rank 0 ended while the ranks met: see its log above");
  }
  DPCOMM_CHECK(readable(door.get(), deadline, meeting.on_wait), TimeoutError, "timeout ",
               meeting.timeout, " s while the ranks met\n  rank 0 waits for others: see its log");
  Hello answer;
  Descriptor memory = receive_answer(door.get(), answer);
  DPCOMM_CHECK(answer.accepted && memory.get() >= 0, MismatchError, "rank 0, of ", answer.size,
               " ranks, refused this process as rank ", meeting.rank, " of ", meeting.size,
               "\n  fix: start every rank with the same launcher, version and settings");
  return memory.release();
}

}  // namespace

int share_memory(const Meeting& meeting, std::size_t bytes) {
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(meeting.timeout));
  return meeting.rank == 0 ? host(meeting, bytes, deadline) : visit(meeting, bytes, deadline);
}

}  // namespace dpcomm
