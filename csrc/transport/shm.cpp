#include "transport/shm.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace dpcomm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLine = 64;
constexpr std::size_t kChunk = std::size_t{32} << 10;  // the reader starts on it while we go on
constexpr double kSlice = 0.1;  // seconds asleep until the next look at peers and the deadline

std::size_t whole_lines(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

template <class Message, class Progress>
bool all_done(std::span<const Message> messages, const std::vector<Progress>& progress) {
  return std::all_of(progress.begin(), progress.begin() + messages.size(),
                     [](const Progress& p) { return p.done; });
}

}  // namespace

ShmTransport::ShmTransport(std::shared_ptr<Segment> segment, std::string_view name, int rank,
                           double timeout)
    : Transport(rank, segment->size(), timeout),
      segment_(std::move(segment)),
      name_(name),
      busy_(size()) {}

void ShmTransport::exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                            std::span<const Incoming> receives) {
  check_failure();
  Member& self = segment_->member(rank());
  self.doing.store(pack_doing(stamp), std::memory_order_relaxed);
  sent_.assign(sends.size(), {});
  received_.assign(receives.size(), {});

  Patience patience(!segment_->crowded());
  bool armed = false;
  std::uint32_t seen = 0;
  Clock::time_point idle_since{};
  for (;;) {
    const bool moved = move_all(stamp, sends, receives);
    const bool done = all_done(sends, sent_) && all_done(receives, received_);
    if (moved || done) {
      if (armed) self.bell.disarm();
      if (done) return;
      armed = false;
      idle_since = {};
      patience.reset();
      continue;
    }
    if (!armed) {
      if (patience.rest()) continue;
      seen = self.bell.arm();  // and look once more
      armed = true;
      continue;
    }
    if (idle_since == Clock::time_point{}) idle_since = Clock::now();
    self.bell.sleep(seen, kSlice);
    self.bell.disarm();
    armed = false;

    check_failure();
    check_peers(stamp, receives);
    waiting();
    int awaited = -1;
    std::string fate;
    const auto ask = [&](int peer, const Progress& progress) {
      if (progress.done || !fate.empty()) return;
      if (awaited < 0) awaited = peer;
      fate = segment_->gone(peer);
      if (!fate.empty()) awaited = peer;
    };
    for (std::size_t i = 0; i < receives.size(); ++i) ask(receives[i].peer, received_[i]);
    for (std::size_t i = 0; i < sends.size(); ++i) ask(sends[i].peer, sent_[i]);
    // What it sent before it went is still there to be read.
    if (!fate.empty() && !move_all(stamp, sends, receives)) {
      check_failure();
      throw lost_peer_error(*this, stamp, awaited, fate);
    }
    if (std::chrono::duration<double>(Clock::now() - idle_since).count() >= timeout()) {
      throw timeout_error(*this, stamp, awaited, describe_doing(segment_->member(awaited).doing));
    }
  }
}

bool ShmTransport::move_all(const Stamp& stamp, std::span<const Outgoing> sends,
                            std::span<const Incoming> receives) {
  bool moved = false;
  std::fill(busy_.begin(), busy_.end(), false);
  for (std::size_t i = 0; i < sends.size(); ++i) {
    if (sent_[i].done || busy_[sends[i].peer]) continue;
    moved |= push(stamp, sends[i], sent_[i]);
    busy_[sends[i].peer] = !sent_[i].done;
  }
  std::fill(busy_.begin(), busy_.end(), false);
  for (std::size_t i = 0; i < receives.size(); ++i) {
    if (received_[i].done || busy_[receives[i].peer]) continue;
    moved |= pull(stamp, receives[i], received_[i]);
    busy_[receives[i].peer] = !received_[i].done;
  }
  return moved;
}

bool ShmTransport::push(const Stamp& stamp, const Outgoing& send, Progress& progress) {
  Stream& stream = segment_->stream(rank(), send.peer);
  std::byte* const bytes = segment_->stream_bytes(rank(), send.peer);
  const std::size_t capacity = segment_->stream_capacity();
  std::uint64_t written = stream.written.load(std::memory_order_relaxed);
  std::size_t room = capacity - (written - stream.read.load());
  bool moved = false;

  while (!progress.done && room > 0) {
    if (!progress.begun) {
      const Header header{stamp, send.bytes};
      std::memcpy(bytes + written % capacity, &header, kLine);
      written += kLine;
      room -= kLine;
      progress.begun = true;
    }
    const std::size_t length =
        std::min({send.bytes - progress.moved, room, capacity - written % capacity, kChunk});
    if (length > 0) {
      std::memcpy(bytes + written % capacity,
                  static_cast<const std::byte*>(send.data) + progress.moved, length);
    }
    progress.moved += length;
    progress.done = progress.moved == send.bytes;
    written += whole_lines(length);
    room -= whole_lines(length);
    stream.written.store(written);
    segment_->member(send.peer).bell.ring();
    moved = true;
  }
  return moved;
}

bool ShmTransport::pull(const Stamp& stamp, const Incoming& receive, Progress& progress) {
  Stream& stream = segment_->stream(receive.peer, rank());
  const std::byte* const bytes = segment_->stream_bytes(receive.peer, rank());
  const std::size_t capacity = segment_->stream_capacity();
  std::uint64_t read = stream.read.load(std::memory_order_relaxed);
  std::size_t there = stream.written.load() - read;
  bool moved = false;

  while (!progress.done && there > 0) {
    if (!progress.begun) {
      Header header;
      std::memcpy(&header, bytes + read % capacity, kLine);
      check_same(stamp, receive.bytes, header, receive.peer);
      read += kLine;
      there -= kLine;
      progress.begun = true;
    }
    // The last line of a message may be there in part only by its padding, never by its content.
    const std::size_t length =
        std::min({receive.bytes - progress.moved, there, capacity - read % capacity, kChunk});
    if (length > 0) {
      std::memcpy(static_cast<std::byte*>(receive.data) + progress.moved, bytes + read % capacity,
                  length);
    }
    progress.moved += length;
    progress.done = progress.moved == receive.bytes;
    read += whole_lines(length);
    there -= whole_lines(length);
    stream.read.store(read);
    segment_->member(receive.peer).bell.ring();
    moved = true;
  }
  return moved;
}

void ShmTransport::check_failure() const {
  Failure& failure = segment_->failure();
  if (failure.state.load(std::memory_order_acquire) != 2) return;
  throw_failure(static_cast<FailureKind>(failure.kind), failure.rank, failure.reason);
}

// Ranks in different collectives may all wait for messages that nobody sends or reads. What a peer
// says that it does, and what it sent and we did not ask for, tells.
void ShmTransport::check_peers(const Stamp& stamp, std::span<const Incoming> receives) const {
  std::vector<bool> amid(size());  // in the middle of a message: what comes next is no header
  for (std::size_t i = 0; i < receives.size(); ++i) {
    if (received_[i].begun && !received_[i].done) amid[receives[i].peer] = true;
  }
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const std::uint64_t doing = segment_->member(peer).doing.load(std::memory_order_relaxed);
    if (doing >> 8 == stamp.sequence && doing != pack_doing(stamp)) {
      throw MismatchError(concat("ranks disagree\n  this rank is in ", describe(stamp), "\n  rank ",
                                 peer, " is in ", describe_doing(doing), kAgree));
    }
    const Stream& stream = segment_->stream(peer, rank());
    const std::uint64_t read = stream.read.load(std::memory_order_relaxed);
    if (amid[peer] || stream.written.load() == read) continue;
    Header header;
    std::memcpy(&header, segment_->stream_bytes(peer, rank()) + read % segment_->stream_capacity(),
                kLine);
    if (header.stamp.sequence != stamp.sequence) continue;  // it is ahead, or behind
    header.stamp.round = stamp.round;
    check_same(stamp, header.bytes, header, peer);
  }
}

void ShmTransport::abort(FailureKind kind, std::string_view reason) noexcept {
  Failure& failure = segment_->failure();
  std::uint32_t none = 0;
  if (failure.state.compare_exchange_strong(none, 1)) {
    failure.rank = rank();
    failure.kind = static_cast<std::int32_t>(kind);
    failure.reason[reason.copy(failure.reason, sizeof(failure.reason) - 1)] = '\0';
    failure.state.store(2, std::memory_order_release);
  }
  for (int peer = 0; peer < size(); ++peer) segment_->member(peer).bell.ring();
}

std::vector<std::shared_ptr<Transport>> local_transports(int size, double timeout) {
  const std::shared_ptr<Segment> segment = Segment::of_threads(size);
  std::vector<std::shared_ptr<Transport>> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_shared<ShmTransport>(segment, "local", rank, timeout));
  }
  return ranks;
}

std::shared_ptr<Transport> shm_transport(const Meeting& meeting, double timeout) {
  return std::make_shared<ShmTransport>(Segment::of_processes(meeting), "shm", meeting.rank,
                                        timeout);
}

}  // namespace dpcomm
