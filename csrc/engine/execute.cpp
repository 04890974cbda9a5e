#include "engine/execute.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <tuple>
#include <vector>

#include "base/cache.hpp"

namespace dpcomm {
namespace {

constexpr std::size_t kSendings = 4;

struct Range {
  std::size_t begin;
  std::size_t end;
  std::size_t count() const { return end - begin; }
};

class Execution {
 public:
  Execution(const Schedule& schedule, Transport& transport, const Buffer& buffer, Stamp stamp,
            const Epilogue& epilogue, Scratch& staging)
      : schedule_(schedule),
        transport_(transport),
        device_(transport.device()),
        buffer_(buffer),
        stamp_(stamp),
        epilogue_(epilogue),
        staging_(staging),
        size_(size_of(stamp.dtype)),
        segment_(device_->cached_bytes() / size_) {
    stamp_.rounds = static_cast<std::uint16_t>(schedule.rounds.size());
  }

  void run() {
    // All of it before the first message: to allocate may wait for the device.
    std::size_t staged = 0;
    for (const Round& round : schedule_.rounds) {
      staged = std::max(staged, std::min<std::size_t>(segments_of(round), 2) * staged_bytes(round));
    }
    std::byte* const room = staging_.at_least(kPage + staged);
    stage_ = room + lead_beside(buffer_.data, room);
    for (const Round& round : schedule_.rounds) {
      ++stamp_.round;
      const std::size_t segments = segments_of(round);
      begin(round, 0);
      for (std::size_t index = 0; index < segments; ++index) {
        // The next segment is on its way while this one is added.
        if (index + 1 < segments) begin(round, index + 1);
        Step& step = steps_[index % 2];
        step.flight->land();
        keep_sending(step);
        add(step.addends);
      }
      complete(round.completes);
    }
    finish_sending(sendings_.size());
  }

 private:
  // A staged receive and where it is to be added.
  struct Addend {
    std::size_t begin;
    std::size_t count;
    int rank;
    const std::byte* data;
  };

  // A segment of a round.
  struct Step {
    std::vector<Outgoing> sends;
    std::vector<Incoming> receives;
    std::vector<Addend> addends;
    std::unique_ptr<Flight> flight;
  };

  // A segment that has landed here, and is perhaps still being sent.
  struct Sending {
    std::vector<Outgoing> sends;
    std::unique_ptr<Flight> flight;
  };

  // Nobody waits for what is sent from where nothing is written. `kSendings` at most are open, so
  // that a rank that only sends does not run away from those that receive.
  void keep_sending(Step& step) {
    sendings_.push_back({std::move(step.sends), std::move(step.flight)});
    if (sendings_.size() > kSendings) finish_sending(1);
  }

  void finish_sending(std::size_t oldest) {
    for (std::size_t i = 0; i < oldest; ++i) sendings_[i].flight->finish();
    sendings_.erase(sendings_.begin(), sendings_.begin() + oldest);
  }

  // Nothing of `range` is being sent any more.
  void make_writable(Range range) {
    const auto overlaps = [&](const Outgoing& send) {
      const auto* const data = static_cast<const std::byte*>(send.data);
      return data < at(range.end) && at(range.begin) < data + send.bytes;
    };
    for (std::size_t i = sendings_.size(); i > 0; --i) {
      const std::vector<Outgoing>& sends = sendings_[i - 1].sends;
      if (std::any_of(sends.begin(), sends.end(), overlaps)) return finish_sending(i);
    }
  }

  std::size_t start(int block) const {
    const std::size_t grains = (buffer_.count + buffer_.grain - 1) / buffer_.grain;
    return std::min(buffer_.count, grains * block / schedule_.blocks * buffer_.grain);
  }

  Range range(Blocks blocks) const { return {start(blocks.begin), start(blocks.end)}; }

  // Both ends of a message cut it alike. An empty one is sent too: its header is checked.
  std::size_t pieces(Blocks blocks) const {
    return std::max<std::size_t>(1, (range(blocks).count() + segment_ - 1) / segment_);
  }

  Range piece(Blocks blocks, std::size_t index) const {
    const Range all = range(blocks);
    const std::size_t begin = std::min(all.end, all.begin + index * segment_);
    return {begin, std::min(all.end, begin + segment_)};
  }

  std::byte* at(std::size_t element) const {
    return static_cast<std::byte*>(buffer_.data) + element * size_;
  }

  std::size_t segments_of(const Round& round) const {
    std::size_t segments = 0;
    for (const Send& send : round.sends) segments = std::max(segments, pieces(send.blocks));
    for (const Receive& receive : round.receives) {
      segments = std::max(segments, pieces(receive.blocks));
    }
    return segments;
  }

  void begin(const Round& round, std::size_t index) {
    Step& step = steps_[index % 2];
    step.sends.clear();
    step.receives.clear();
    step.addends.clear();
    for (const Send& send : round.sends) {
      if (index >= pieces(send.blocks)) continue;
      const Range part = piece(send.blocks, index);
      step.sends.push_back({send.peer, at(part.begin), part.count() * size_});
    }
    std::byte* stage = stage_ + index % 2 * staged_bytes(round);
    for (const Receive& receive : round.receives) {
      if (index >= pieces(receive.blocks)) continue;
      const Range part = piece(receive.blocks, index);
      const std::size_t bytes = part.count() * size_;
      if (receive.combine == Combine::kCopy) {
        make_writable(part);
        step.receives.push_back({receive.peer, at(part.begin), bytes});
      } else {
        step.receives.push_back({receive.peer, stage, bytes});
        step.addends.push_back({part.begin, part.count(), receive.peer, stage});
        stage += bytes;
      }
    }
    step.flight = transport_.begin(stamp_, step.sends, step.receives);
  }

  // By one segment, of which the first is a longest.
  std::size_t staged_bytes(const Round& round) const {
    std::size_t bytes = 0;
    for (const Receive& receive : round.receives) {
      if (receive.combine == Combine::kAdd) bytes += piece(receive.blocks, 0).count() * size_;
    }
    return bytes;
  }

  // Adds up all that came for the same elements in one pass, in the order of ranks, one's own part
  // in its own place.
  void add(std::vector<Addend>& addends) {
    std::sort(addends.begin(), addends.end(), [](const Addend& a, const Addend& b) {
      return std::tie(a.begin, a.rank) < std::tie(b.begin, b.rank);
    });
    for (auto first = addends.begin(); first != addends.end();) {
      const auto last = std::find_if(first, addends.end(),
                                     [&](const Addend& a) { return a.begin != first->begin; });
      make_writable({first->begin, first->begin + first->count});
      void* const own = at(first->begin);
      parts_.clear();
      auto other = first;
      while (other != last && other->rank < schedule_.rank) parts_.push_back((other++)->data);
      parts_.push_back(own);
      while (other != last) parts_.push_back((other++)->data);
      device_->combine(stamp_.dtype, stamp_.redop, parts_, own, first->count);
      first = last;
    }
  }

  void complete(Blocks blocks) {
    const Range done = range(blocks);
    if (done.count() == 0) return;
    if (stamp_.redop == RedOp::kMean) {
      make_writable(done);
      device_->divide(stamp_.dtype, at(done.begin), done.count(), schedule_.size);
    }
    if (!epilogue_) return;
    finish_sending(sendings_.size());  // the peers are not to wait for the epilogue's time
    epilogue_(at(done.begin), done.begin, done.count());
  }

  const Schedule& schedule_;
  Transport& transport_;
  const std::shared_ptr<Device> device_;
  const Buffer& buffer_;
  Stamp stamp_;
  const Epilogue& epilogue_;
  Scratch& staging_;
  std::byte* stage_ = nullptr;
  std::size_t size_;     // bytes of an element
  std::size_t segment_;  // elements
  std::array<Step, 2> steps_;
  std::vector<Sending> sendings_;
  std::vector<const void*> parts_;
};

}  // namespace

void execute(const Schedule& schedule, Transport& transport, const Buffer& buffer, Stamp stamp,
             const Epilogue& epilogue, Scratch& staging) {
  Execution(schedule, transport, buffer, stamp, epilogue, staging).run();
}

}  // namespace dpcomm
