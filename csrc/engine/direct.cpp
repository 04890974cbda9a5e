#include "engine/direct.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace dpcomm {
namespace {

constexpr std::size_t kGrain = 16;                           // elements; see Buffer::grain
constexpr std::size_t kPieceBytes = std::size_t{128} << 10;  // stays in the second-level cache
constexpr std::size_t kFixedSlices = std::size_t{16} << 20;  // bytes; pieces on demand below

}  // namespace

DirectAllReduce::DirectAllReduce(SharedMemory& memory, int rank, int size)
    : memory_(memory),
      rank_(rank),
      size_(size),
      inputs_(size),
      outputs_(size),
      parts_(size),
      outs_(size) {}

void DirectAllReduce::run(const void* data, void* out, const Stamp& stamp,
                          const Epilogue& epilogue) {
  data_ = static_cast<const std::byte*>(data);
  out_ = static_cast<std::byte*>(out);
  stamp_ = &stamp;
  epilogue_ = &epilogue;
  width_ = size_of(stamp.dtype);
  bytes_ = stamp.count * width_;
  Entry& own = memory_.own();
  const bool tiny = bytes_ <= Entry::kTiny;
  if (tiny) {
    if (bytes_ > 0) std::memcpy(own.payload(bytes_), data_, bytes_);
  } else {
    own.input = memory_.token(data_, bytes_);
    own.output = memory_.token(out_, bytes_);
  }
  memory_.post(*stamp_);
  memory_.await_entries(*stamp_);
  if (tiny) return add_entries();
  for (int peer = 0; peer < size_; ++peer) {
    const Entry& entry = memory_.entry(peer);
    if (entry.input == SharedMemory::kPrivate || entry.output == SharedMemory::kPrivate) {
      return run_staged();
    }
  }
  run_in_place();
}

void DirectAllReduce::add_entries() {
  for (int peer = 0; peer < size_; ++peer) parts_[peer] = memory_.entry(peer).payload(bytes_);
  void* const out = out_;
  combine(stamp_->dtype, stamp_->redop, parts_, {&out, 1}, stamp_->count);
  complete(out_, 0, stamp_->count);
}

void DirectAllReduce::run_in_place() {
  origin_ = 0;
  for (int peer = 0; peer < size_; ++peer) {
    inputs_[peer] = memory_.at(memory_.entry(peer).input);
    outputs_[peer] = memory_.at(memory_.entry(peer).output);
  }
  if (memory_.crowded() && bytes_ < kFixedSlices && !*epilogue_) {
    // Whoever is on a core takes the next piece; but an epilogue finds its own elements each time.
    const std::size_t piece = kPieceBytes / width_;
    for (;;) {
      const std::size_t begin = memory_.take_ticket() * piece;
      if (begin >= stamp_->count) break;
      reduce(begin, std::min(piece, stamp_->count - begin));
    }
  } else {
    reduce_slice(0, stamp_->count);
  }
  memory_.meet(*stamp_);
}

// One meeting a window: while a window is reduced, the next is already copied in.
void DirectAllReduce::run_staged() {
  const std::size_t window = SharedMemory::kStagingBytes / width_;
  const std::size_t windows = (stamp_->count + window - 1) / window;
  const auto length = [&](std::size_t w) { return std::min(window, stamp_->count - w * window); };
  const auto copy_in = [&](std::size_t w) {
    std::memcpy(memory_.staging(rank_, static_cast<int>(w % 2)), data_ + w * window * width_,
                length(w) * width_);
  };
  copy_in(0);
  memory_.meet(*stamp_);
  for (std::size_t w = 0; w < windows; ++w) {
    const int half = static_cast<int>(w % 2);
    for (int peer = 0; peer < size_; ++peer) inputs_[peer] = memory_.staging(peer, half);
    outputs_ = inputs_;
    origin_ = w * window;
    reduce_slice(w * window, length(w));
    if (w + 1 < windows) copy_in(w + 1);
    memory_.meet(*stamp_);
    std::memcpy(out_ + w * window * width_, inputs_[rank_], length(w) * width_);
  }
}

// This rank's share of the elements [begin, begin + count).
void DirectAllReduce::reduce_slice(std::size_t begin, std::size_t count) {
  const std::size_t grains = (count + kGrain - 1) / kGrain;
  const std::size_t first = std::min(count, grains * rank_ / size_ * kGrain);
  const std::size_t last = std::min(count, grains * (rank_ + 1) / size_ * kGrain);
  const std::size_t piece = kPieceBytes / width_;
  for (std::size_t at = first; at < last; at += piece) {
    reduce(begin + at, std::min(piece, last - at));
  }
}

void DirectAllReduce::reduce(std::size_t begin, std::size_t count) {
  const std::size_t skip = begin - origin_;
  for (int peer = 0; peer < size_; ++peer) {
    parts_[peer] = inputs_[peer] + skip * width_;
    outs_[peer] = outputs_[peer] + skip * width_;
  }
  if (!*epilogue_ && stamp_->redop != RedOp::kMean) {
    combine(stamp_->dtype, stamp_->redop, parts_, outs_, count);
    return;
  }
  void* const own = outs_[rank_];
  combine(stamp_->dtype, stamp_->redop, parts_, {&own, 1}, count);
  complete(own, begin, count);
  for (void* out : outs_) {
    if (out != own) std::memcpy(out, own, count * width_);
  }
}

void DirectAllReduce::complete(void* done, std::size_t begin, std::size_t count) {
  if (stamp_->redop == RedOp::kMean) divide(stamp_->dtype, done, count, size_);
  if (*epilogue_ && count > 0) (*epilogue_)(done, begin, count);
}

}  // namespace dpcomm
