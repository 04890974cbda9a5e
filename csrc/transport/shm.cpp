#include "transport/shm.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/cache.hpp"

namespace dpcomm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kChunk = std::size_t{32} << 10;  // the reader starts on it while we go on
constexpr double kSlice = 0.1;  // seconds asleep until the next look at peers and the deadline

std::size_t whole_lines(std::size_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

template <class Message, class Progress>
bool all_done(std::span<const Message> messages, const std::vector<Progress>& progress) {
  return std::all_of(progress.begin(), progress.begin() + messages.size(),
                     [](const Progress& p) { return p.done; });
}

}  // namespace

ShmTransport::ShmTransport(std::shared_ptr<Segment> segment, std::string key, int rank,
                           double timeout)
    : Transport(rank, segment->size(), timeout),
      segment_(std::move(segment)),
      key_(std::move(key)),
      threads_(segment_->arena_bytes() == 0),
      arena_(segment_->arena(rank) + (threads_ ? 0 : kSlots * kSlotStride),
             threads_ ? 0 : segment_->arena_bytes() - kSlots * kSlotStride, rank % 2 * kApart),
      amid_(size()),
      busy_(size()) {}

void ShmTransport::exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                            std::span<const Incoming> receives) {
  check_failure();
  segment_->member(rank()).doing.store(pack_doing(stamp), std::memory_order_relaxed);
  sent_.assign(sends.size(), {});
  received_.assign(receives.size(), {});
  const auto look = [&] {
    const bool moved = move_all(stamp, sends, receives);
    if (all_done(sends, sent_) && all_done(receives, received_)) return Look::kDone;
    return moved ? Look::kMoved : Look::kNothing;
  };
  const auto peers = [&](const auto& ask) {
    for (std::size_t i = 0; i < receives.size(); ++i) {
      if (!received_[i].done) ask(receives[i].peer);
    }
    for (std::size_t i = 0; i < sends.size(); ++i) {
      if (!sent_[i].done) ask(sends[i].peer);
    }
  };
  wait(stamp, look(), look, peers);
}

template <class LookFn, class PeersFn>
void ShmTransport::wait(const Stamp& stamp, Look found, LookFn look, PeersFn peers) {
  Bell& bell = segment_->member(rank()).bell;
  Patience patience(!segment_->crowded());
  bool armed = false;
  std::uint32_t seen = 0;
  Clock::time_point idle_since{};
  for (;; found = look()) {
    if (found != Look::kNothing) {
      if (armed) bell.disarm();
      if (found == Look::kDone) return;
      armed = false;
      idle_since = {};
      patience.reset();
      continue;
    }
    if (!armed) {
      if (patience.rest()) continue;
      seen = bell.arm();  // and look once more
      armed = true;
      continue;
    }
    if (idle_since == Clock::time_point{}) idle_since = Clock::now();
    bell.sleep(seen, kSlice);
    bell.disarm();
    armed = false;

    check_failure();
    check_peers(stamp);
    waiting();
    int awaited = -1;
    std::string fate;
    peers([&](int peer) {
      if (!fate.empty()) return;
      fate = segment_->gone(peer);
      if (awaited < 0 || !fate.empty()) awaited = peer;
    });
    if (awaited < 0) continue;  // the last has come since
    if (!fate.empty()) {
      // What it sent before it went is still there to be read.
      const Look last = look();
      if (last == Look::kDone) return;
      if (last == Look::kMoved) continue;
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
    amid_[receives[i].peer] = received_[i].begun && !received_[i].done;
  }
  return moved;
}

bool ShmTransport::push(const Stamp& stamp, const Outgoing& send, Progress& progress) {
  ByteStream& stream = segment_->stream(rank(), send.peer);
  std::byte* const bytes = segment_->stream_bytes(rank(), send.peer);
  const std::size_t capacity = segment_->stream_capacity();
  std::uint64_t written = stream.written.load(std::memory_order_relaxed);
  std::size_t room = capacity - (written - stream.read.load());
  bool moved = false;

  while (!progress.done && room > 0) {
    if (!progress.begun) {
      const Header header{stamp, send.bytes};
      std::memcpy(bytes + written % capacity, &header, kCacheLine);
      written += kCacheLine;
      room -= kCacheLine;
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
  ByteStream& stream = segment_->stream(receive.peer, rank());
  const std::byte* const bytes = segment_->stream_bytes(receive.peer, rank());
  const std::size_t capacity = segment_->stream_capacity();
  std::uint64_t read = stream.read.load(std::memory_order_relaxed);
  std::size_t there = stream.written.load() - read;
  bool moved = false;

  while (!progress.done && there > 0) {
    if (!progress.begun) {
      Header header;
      std::memcpy(&header, bytes + read % capacity, kCacheLine);
      check_same(stamp, receive.bytes, header, job_rank(receive.peer));
      read += kCacheLine;
      there -= kCacheLine;
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

void ShmTransport::check_own_failure() {
  Failure& failure = segment_->failure();
  if (failure.state.load(std::memory_order_acquire) != 2) return;
  throw_failure(static_cast<FailureKind>(failure.kind), job_rank(failure.rank), failure.reason);
}

// Ranks in different collectives may all wait for messages that nobody sends or reads. What a peer
// says that it does, and what it sent and we did not ask for, tells.
void ShmTransport::check_peers(const Stamp& stamp) const {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const std::uint64_t doing = segment_->member(peer).doing.load(std::memory_order_relaxed);
    if (doing >> 8 == stamp.sequence && doing != pack_doing(stamp)) {
      throw MismatchError(concat("ranks disagree\n  this rank is in ", describe(stamp), "\n  rank ",
                                 job_rank(peer), " is in ", describe_doing(doing), kAgree));
    }
    const ByteStream& stream = segment_->stream(peer, rank());
    const std::uint64_t read = stream.read.load(std::memory_order_relaxed);
    if (amid_[peer] || stream.written.load() == read) continue;
    Header header;
    std::memcpy(&header, segment_->stream_bytes(peer, rank()) + read % segment_->stream_capacity(),
                kCacheLine);
    if (header.stamp.sequence != stamp.sequence) continue;  // it is ahead, or behind
    header.stamp.round = stamp.round;
    check_same(stamp, header.bytes, header, job_rank(peer));
  }
}

void ShmTransport::check_peers_live(const Stamp& stamp) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const std::string fate = segment_->gone(peer);
    if (!fate.empty()) throw lost_peer_error(*this, stamp, peer, fate);
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
  ring_all();
}

void ShmTransport::ring_all() {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) segment_->member(peer).bell.ring();
  }
}

std::uint64_t ShmTransport::token(const void* data, std::size_t bytes) const {
  if (threads_) return reinterpret_cast<std::uintptr_t>(data);
  if (!arena_.holds(data, bytes)) return kPrivate;
  return static_cast<std::uint64_t>(static_cast<const std::byte*>(data) - segment_->base());
}

void ShmTransport::enter(const Stamp& stamp) {
  check_failure();
  segment_->member(rank()).doing.store(pack_doing(stamp), std::memory_order_relaxed);
  const std::uint64_t expected = fingerprint(stamp);
  Entry& mine = own();
  mine.fingerprint = expected;
  mine.stamp = stamp;
  ++directs_;
  mine.posted.store(directs_, std::memory_order_release);
  await_all(stamp, directs_, [this](int peer) -> auto& { return entry(peer).posted; });
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank() && entry(peer).fingerprint != expected) {
      check_same(stamp, 0, {entry(peer).stamp, 0}, job_rank(peer));
    }
  }
  // Nobody reads the next entry before the next collective.
  if (tact_.far() || segment_->crowded()) claim(&own());
}

void ShmTransport::meet(const Stamp& stamp) {
  segment_->board(rank()).met.store(++meetings_, std::memory_order_release);
  await_all(stamp, meetings_, [this](int peer) -> auto& { return segment_->board(peer).met; });
}

template <class CounterFn>
void ShmTransport::await_all(const Stamp& stamp, std::uint64_t target, CounterFn counter) {
  int peer = 0;
  const auto look = [&] {
    const int before = peer;
    while (peer < size() && (peer == rank() || counter(peer).load() >= target)) ++peer;
    if (peer == size()) return Look::kDone;
    return peer > before ? Look::kMoved : Look::kNothing;
  };
  // Only who comes last wakes the others: whoever is woken finds all of them there. Behind the
  // fence at least one of those who come at once sees all. Where each has a core, the first look is
  // made while our own arrival may be on its way still.
  bool last = false;
  if (!segment_->crowded()) {
    tact_.begin(directs_ + meetings_);
    tact_.hold_back();
    last = look() == Look::kDone;
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);
  last = last || look() == Look::kDone;
  if (last) {
    ring_all();
    return tact_.end();
  }
  const auto peers = [&](const auto& ask) {
    for (int rest = peer; rest < size(); ++rest) {
      if (counter(rest).load() < target) ask(rest);
    }
  };
  wait(stamp, Look::kNothing, look, peers);
  tact_.end();
}

std::shared_ptr<Transport> ShmTransport::split(const Stamp& stamp,
                                               const std::vector<int>& members) {
  const int count = static_cast<int>(members.size());
  const int place =
      static_cast<int>(std::find(members.begin(), members.end(), rank()) - members.begin());
  if (!threads_) {
    const std::string key = concat(key_, ".", stamp.sequence, ".", members[0]);
    const auto on_wait = [this] {
      check_failure();
      waiting();
    };
    std::shared_ptr<Transport> made =
        shm_transport({key, place, count, timeout(), on_wait}, timeout());
    made->on_wait(wait_callback());
    return made;
  }
  // The first thread makes the memory and shows it to the others.
  std::shared_ptr<Segment> segment;
  const std::shared_ptr<Segment>* shown = &segment;
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  if (place == 0) {
    segment = Segment::of_threads(count);
    for (int peer : members) {
      if (peer != rank()) sends.push_back({peer, &shown, sizeof(void*)});
    }
  } else {
    receives.push_back({members[0], &shown, sizeof(void*)});
  }
  exchange(stamp, sends, receives);
  auto made = std::make_shared<ShmTransport>(*shown, "", place, timeout());
  made->meet(stamp);  // the first may now let go of what it showed
  made->on_wait(wait_callback());
  return made;
}

std::vector<std::shared_ptr<Transport>> local_transports(int size, double timeout) {
  const std::shared_ptr<Segment> segment = Segment::of_threads(size);
  std::vector<std::shared_ptr<Transport>> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_shared<ShmTransport>(segment, "", rank, timeout));
  }
  return ranks;
}

std::shared_ptr<Transport> shm_transport(const Meeting& meeting, double timeout) {
  return std::make_shared<ShmTransport>(Segment::of_processes(meeting), meeting.key, meeting.rank,
                                        timeout);
}

}  // namespace dpcomm
