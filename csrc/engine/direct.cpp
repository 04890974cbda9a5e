#include "engine/direct.hpp"

#include <algorithm>
#include <cstring>

#include "base/cache.hpp"
#include "engine/execute.hpp"

namespace dpcomm {
namespace {

// Much of a piece is in the first-level cache still when it is divided, and all of it in the second
// when an epilogue, whose threads want longer ones, is done with it.
constexpr std::size_t kPieceBytes = std::size_t{32} << 10;
constexpr std::size_t kEpilogueBytes = std::size_t{128} << 10;
constexpr std::size_t kWholeBytes = std::size_t{16} << 10;  // is summed sooner than met for

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (to != from && bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace

Direct::Direct(ShmTransport& memory, int rank, int size)
    : memory_(memory), rank_(rank), size_(size), inputs_(size), parts_(size) {}

bool Direct::parted() const {
  return stamp_->operation == Operation::kReduceScatter ||
         stamp_->operation == Operation::kAllToAll;
}

bool Direct::one_result() const {
  return stamp_->operation == Operation::kAllReduce || stamp_->operation == Operation::kReduce;
}

// Short sums save a meeting where each rank works out the whole.
bool Direct::sliced() const {
  return one_result() && (call_->epilogue || stamp_->count * width_ > kWholeBytes);
}

bool Direct::gives(int rank) const {
  return stamp_->operation != Operation::kBroadcast || rank == stamp_->root;
}

bool Direct::takes(int rank) const {
  return stamp_->operation != Operation::kReduce || rank == stamp_->root;
}

std::size_t Direct::input_bytes(std::size_t count) const {
  return count * width_ * (parted() ? size_ : 1);
}

void Direct::run(const Stamp& stamp, const Arguments& arguments) {
  stamp_ = &stamp;
  call_ = &arguments;
  width_ = size_of(stamp.dtype);
  scales_.clear();
  if (input_bytes(stamp.count) <= Entry::kTiny) return run_posted();

  Buffers& own = memory_.own().buffers;
  own.input = memory_.token(call_->data, input_bytes(stamp.count));
  own.output = memory_.token(call_->out, stamp.count * width_);
  own.scale = call_->scale;
  own.lead = lead_beside(call_->data);
  // What is private goes to staging before the others come, who then need not meet once more.
  if (own.input == ShmTransport::kPrivate) give_window(0);
  memory_.enter(stamp);
  visible() ? run_in_place() : run_staged();
}

// Each rank has all inputs before it, and works out the whole of what it wants.
void Direct::run_posted() {
  const std::size_t bytes = input_bytes(stamp_->count);
  if (bytes > 0 && gives(rank_)) give(memory_.own().payload(bytes), 0, stamp_->count);
  memory_.enter(*stamp_);
  if (bytes == 0 || !takes(rank_)) return;
  scale_own();
  see(0, stamp_->count, [&](int peer) { return memory_.entry(peer).payload(bytes); });
  take(0, stamp_->count);
}

bool Direct::visible() {
  for (int peer = 0; peer < size_; ++peer) {
    const Buffers& theirs = memory_.entry(peer).buffers;
    if (gives(peer) && theirs.input == ShmTransport::kPrivate) return false;
    if (one_result() && takes(peer) && theirs.output == ShmTransport::kPrivate) return false;
  }
  return true;
}

void Direct::run_in_place() {
  const auto buffers = [&](int peer) -> const Buffers& { return memory_.entry(peer).buffers; };
  bool scaled = false;
  for (int peer = 0; peer < size_; ++peer) scaled |= buffers(peer).scale != 1;
  for (int peer = 0; scaled && peer < size_; ++peer) scales_.push_back(buffers(peer).scale);
  see(0, stamp_->count, [&](int peer) { return memory_.at(buffers(peer).input); });
  results_.clear();
  for (int step = 0; one_result() && step < size_; ++step) {  // one's own first
    const int peer = (rank_ + step) % size_;
    if (takes(peer)) results_.push_back(memory_.at(buffers(peer).output));
  }

  if (!one_result()) {
    take(0, stamp_->count);
  } else {
    const Range own = slice(rank_, stamp_->count);
    reduce_all(own.begin, own.end - own.begin);
  }
  memory_.meet(*stamp_);
}

// One meeting a window: while a window is worked on, the next is already copied in.
void Direct::run_staged() {
  bool all_gave = true;
  for (int peer = 0; peer < size_; ++peer) {
    all_gave &= memory_.entry(peer).buffers.input == ShmTransport::kPrivate;
  }
  if (!all_gave) {
    if (memory_.entry(rank_).buffers.input != ShmTransport::kPrivate) give_window(0);
    memory_.meet(*stamp_);
  }
  scale_own();
  const std::size_t windows = (stamp_->count + window() - 1) / window();
  sliced() ? reduce_windows(windows) : take_windows(windows);
  windows_ += windows;
}

void Direct::take_windows(std::size_t windows) {
  for (std::size_t w = 0; w < windows; ++w) {
    see_window(w);
    if (takes(rank_)) take(w * window(), window_count(w));
    if (w + 1 == windows) break;  // what peers still read is not written in the next collective
    give_window(w + 1);
    memory_.meet(*stamp_);
  }
}

// Each rank works out its slice of a window, which it writes where it read it: into the staging
// memory of all who want it. They copy it from there one window later.
void Direct::reduce_windows(std::size_t windows) {
  for (std::size_t w = 0; w < windows; ++w) {
    see_window(w);
    results_.clear();
    if (takes(rank_)) results_.push_back(static_cast<std::byte*>(call_->out) + origin_ * width_);
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + step) % size_;
      if (takes(peer)) results_.push_back(staging(peer, w));
    }
    const Range own = slice(rank_, window_count(w));
    reduce_all(w * window() + own.begin, own.end - own.begin);
    if (w > 0) gather_window(w - 1);
    if (w + 1 < windows) give_window(w + 1);
    memory_.meet(*stamp_);
  }
  gather_window(windows - 1);
}

void Direct::see_window(std::size_t index) {
  see(index * window(), window_count(index), [&](int peer) { return staging(peer, index); });
}

void Direct::gather_window(std::size_t index) {
  if (!takes(rank_)) return;
  const std::size_t count = window_count(index);
  const Range own = slice(rank_, count);
  auto* const out = static_cast<std::byte*>(call_->out) + index * window() * width_;
  const std::byte* const from = staging(rank_, index);
  copy_bytes(out, from, own.begin * width_);
  copy_bytes(out + own.end * width_, from + own.end * width_, (count - own.end) * width_);
}

// Elements of a block that go through a slot of the staging memory at once.
std::size_t Direct::window() const {
  return std::max<std::size_t>(1, ShmTransport::kSlotBytes / input_bytes(kGrain)) * kGrain;
}

std::size_t Direct::window_count(std::size_t index) const {
  return std::min(window(), stamp_->count - index * window());
}

// Slots are taken in turn, over all collectives: the one that is written was read by everybody
// before the latest meeting.
std::byte* Direct::staging(int rank, std::size_t index) const {
  const std::size_t lead =
      rank == rank_ ? lead_beside(call_->data) : memory_.entry(rank).buffers.lead;
  return memory_.staging(rank, static_cast<int>((windows_ + index) % ShmTransport::kSlots)) + lead;
}

void Direct::give_window(std::size_t index) {
  if (!gives(rank_)) return;
  const std::size_t begin = index * window();
  const std::size_t count = window_count(index);
  std::byte* const to = staging(rank_, index);
  if (!sliced()) return give(to, begin, count);
  const Range own = slice(rank_, count);
  give(to, begin, own.begin);
  give(to + own.end * width_, begin + own.end, count - own.end);
}

// The elements [begin, begin + count) of each block of this rank's input, scaled.
void Direct::give(std::byte* to, std::size_t begin, std::size_t count) {
  const auto* const data = static_cast<const std::byte*>(call_->data);
  for (int block = 0; block < (parted() ? size_ : 1); ++block) {
    multiply(stamp_->dtype, to + block * count * width_,
             data + (block * stamp_->count + begin) * width_, count, call_->scale);
  }
}

// From here on inputs are `where(peer)`: the elements [begin, begin + count) of each block. This
// rank's own is where it always lay: what it posted may have gone over to a peer's core, and would
// have to be fetched back.
template <class Where>
void Direct::see(std::size_t begin, std::size_t count, Where where) {
  origin_ = begin;
  const std::size_t skip = parted() ? rank_ * count * width_ : 0;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer != rank_ && gives(peer)) inputs_[peer] = where(peer) + skip;
  }
  if (!gives(rank_)) return;
  const std::size_t block = parted() ? rank_ * stamp_->count : 0;
  inputs_[rank_] = static_cast<const std::byte*>(call_->data) + (block + begin) * width_;
}

// Peers have scaled what they gave; this rank's own input is as it was.
void Direct::scale_own() {
  if (call_->scale == 1) return;
  scales_.assign(size_, 1);
  scales_[rank_] = call_->scale;
}

// The share of `rank` in `count` elements.
Direct::Range Direct::slice(int rank, std::size_t count) const {
  const std::size_t grains = (count + kGrain - 1) / kGrain;
  return {std::min(count, grains * rank / size_ * kGrain),
          std::min(count, grains * (rank + 1) / size_ * kGrain)};
}

void Direct::reduce_all(std::size_t begin, std::size_t count) {
  const std::size_t piece = (call_->epilogue ? kEpilogueBytes : kPieceBytes) / width_;
  for (std::size_t at = 0; at < count; at += piece) {
    reduce(begin + at, std::min(piece, count - at));
  }
}

// Combines the elements [begin, begin + count) of all inputs, into all results.
void Direct::reduce(std::size_t begin, std::size_t count) {
  const std::size_t skip = (begin - origin_) * width_;
  for (int peer = 0; peer < size_; ++peer) parts_[peer] = inputs_[peer] + skip;
  outs_.resize(results_.size());
  for (std::size_t i = 0; i < outs_.size(); ++i) outs_[i] = results_[i] + skip;
  if (!call_->epilogue && stamp_->redop != RedOp::kMean) {
    combine(stamp_->dtype, stamp_->redop, parts_, outs_, count, scales_);
    return;
  }
  void* const first = outs_[0];
  combine(stamp_->dtype, stamp_->redop, parts_, {&first, 1}, count, scales_);
  complete(first, begin, count);
  for (void* out : outs_) copy_bytes(out, first, count * width_);
}

// All of what this rank wants of the elements [begin, begin + count), into its `out`.
void Direct::take(std::size_t begin, std::size_t count) {
  auto* const out = static_cast<std::byte*>(call_->out);
  switch (stamp_->operation) {
    case Operation::kBroadcast:
      return take_from(stamp_->root, out, begin, count);
    case Operation::kAllGather:
    case Operation::kAllToAll:
      for (int step = 0; step < size_; ++step) {
        const int peer = (rank_ + step) % size_;  // no two ranks read the same one at once
        take_from(peer, out + peer * stamp_->count * width_, begin, count);
      }
      return;
    default:
      results_.assign(1, out + origin_ * width_);
      return reduce_all(begin, count);
  }
}

void Direct::take_from(int peer, std::byte* to, std::size_t begin, std::size_t count) {
  copy_bytes(to + begin * width_, inputs_[peer] + (begin - origin_) * width_, count * width_);
}

void Direct::complete(void* done, std::size_t begin, std::size_t count) {
  if (stamp_->redop == RedOp::kMean) divide(stamp_->dtype, done, count, size_);
  if (!call_->epilogue || count == 0) return;
  // The offset is in the whole input, of which reduce-scatter's result is block `rank`.
  const std::size_t block = parted() ? rank_ * stamp_->count : 0;
  call_->epilogue(done, block + begin, count);
}

}  // namespace dpcomm
