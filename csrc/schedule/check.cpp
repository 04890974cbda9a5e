#include "schedule/check.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <sstream>
#include <vector>

namespace dpcomm {
namespace {

// What a rank knows of one block.
struct Symbol {
  std::uint64_t contributors = 0;
  bool complete = false;  // the epilogue was called, here or where the copy came from

  bool operator==(const Symbol&) const = default;
};

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

class Checker {
 public:
  Checker(std::span<const Schedule> ranks, Goal goal, int root)
      : ranks_(ranks), goal_(goal), root_(root), size_(static_cast<int>(ranks.size())) {
    everyone_ = size_ == 64 ? ~0ULL : (1ULL << size_) - 1;
  }

  std::string run() {
    if (const std::string fault = shape(); !fault.empty()) return fault;
    begin();
    for (std::size_t round = 0; round < ranks_[0].rounds.size(); ++round) {
      const std::vector<std::vector<Symbol>> before = state_;
      for (int rank = 0; rank < size_; ++rank) {
        std::string fault = sends_have_receives(rank, round);
        if (fault.empty()) fault = race(rank, round);
        if (fault.empty()) fault = receive(rank, round, before);
        if (fault.empty()) fault = complete(rank, round);
        if (!fault.empty()) return join("round ", round, ", rank ", rank, ": ", fault);
      }
    }
    return end();
  }

 private:
  std::string shape() const {
    if (size_ < 1 || size_ > 64) return join(size_, " ranks: a check takes 1 to 64");
    for (int rank = 0; rank < size_; ++rank) {
      const Schedule& schedule = ranks_[rank];
      if (schedule.rank != rank || schedule.size != size_)
        return join("rank ", rank, " is misnamed");
      if (schedule.blocks != ranks_[0].blocks) return join("rank ", rank, " cuts other blocks");
      if (schedule.rounds.size() != ranks_[0].rounds.size()) {
        return join("rank ", rank, " has ", schedule.rounds.size(), " rounds, rank 0 has ",
                    ranks_[0].rounds.size());
      }
    }
    return {};
  }

  void begin() {
    const int blocks = ranks_[0].blocks;
    state_.assign(size_, std::vector<Symbol>(blocks));
    for (int rank = 0; rank < size_; ++rank) {
      for (int block = 0; block < blocks; ++block) {
        Symbol& symbol = state_[rank][block];
        switch (goal_) {
          case Goal::kAllReduce:
          case Goal::kReduceScatter:
          case Goal::kReduce:
            symbol.contributors = 1ULL << rank;
            break;
          case Goal::kAllGather:
            if (rank == block) symbol = {everyone_, true};
            break;
          case Goal::kBroadcast:
            if (rank == root_) symbol = {everyone_, true};
            break;
        }
      }
    }
  }

  // The k-th message to a peer is the k-th it receives from us: messages of a pair keep their
  // order.
  template <class Message>
  static std::vector<Message> between(const std::vector<Message>& messages, int peer) {
    std::vector<Message> found;
    for (const Message& message : messages) {
      if (message.peer == peer) found.push_back(message);
    }
    return found;
  }

  std::string sends_have_receives(int rank, std::size_t round) const {
    const Round& own = ranks_[rank].rounds[round];
    for (const Send& send : own.sends) {
      if (send.peer < 0 || send.peer >= size_ || send.peer == rank) {
        return join("sends to rank ", send.peer);
      }
    }
    for (int peer = 0; peer < size_; ++peer) {
      const auto sent = between(own.sends, peer);
      const auto received = between(ranks_[peer].rounds[round].receives, rank);
      const bool same = std::equal(
          sent.begin(), sent.end(), received.begin(), received.end(),
          [](const Send& send, const Receive& receive) { return send.blocks == receive.blocks; });
      if (!same) return join("what it sends to rank ", peer, " is not what that rank receives");
    }
    return {};
  }

  // Messages are in flight together, each in segments of its own: where one lands, no other may be
  // read or land, unless both are of the same blocks, which are cut alike, and what comes is added.
  std::string race(int rank, std::size_t round) const {
    const auto& [sends, receives, completes] = ranks_[rank].rounds[round];
    const auto meet = [](const Receive& one, Blocks other, Combine combine) {
      if (one.blocks.end <= other.begin || other.end <= one.blocks.begin) return false;
      return one.blocks != other || one.combine == Combine::kCopy || combine == Combine::kCopy;
    };
    for (auto one = receives.begin(); one != receives.end(); ++one) {
      for (const Send& send : sends) {
        if (meet(*one, send.blocks, Combine::kAdd)) {
          return join("receives into block ", one->blocks.begin, " what it sends meanwhile");
        }
      }
      for (auto other = std::next(one); other != receives.end(); ++other) {
        if (meet(*one, other->blocks, other->combine)) {
          return join("receives into block ", one->blocks.begin, " what else comes meanwhile");
        }
      }
    }
    return {};
  }

  std::string receive(int rank, std::size_t round, const std::vector<std::vector<Symbol>>& before) {
    std::vector<Symbol>& own = state_[rank];
    for (const Receive& receive : ranks_[rank].rounds[round].receives) {
      if (receive.peer < 0 || receive.peer >= size_) return join("receives from ", receive.peer);
      if (receive.blocks.begin < 0 || receive.blocks.end > ranks_[rank].blocks ||
          receive.blocks.begin >= receive.blocks.end) {
        return join("receives blocks ", receive.blocks.begin, " to ", receive.blocks.end);
      }
      for (int block = receive.blocks.begin; block < receive.blocks.end; ++block) {
        const Symbol& incoming = before[receive.peer][block];
        if (receive.combine == Combine::kCopy) {
          if (own[block].complete && !incoming.complete) {
            return join("copies a part over block ", block, " after its epilogue");
          }
          own[block] = incoming;
        } else if (own[block].complete || incoming.complete) {
          return join("adds to block ", block, " after its epilogue");
        } else if (own[block].contributors & incoming.contributors) {
          return join("adds a contribution to block ", block, " twice");
        } else {
          own[block].contributors |= incoming.contributors;
        }
      }
    }
    return {};
  }

  std::string complete(int rank, std::size_t round) {
    const Blocks completes = ranks_[rank].rounds[round].completes;
    if (completes.begin < 0 || completes.end > ranks_[rank].blocks) {
      return join("completes blocks ", completes.begin, " to ", completes.end);
    }
    for (int block = completes.begin; block < completes.end; ++block) {
      Symbol& symbol = state_[rank][block];
      if (symbol.complete) return join("calls the epilogue on block ", block, " twice");
      if (symbol.contributors != everyone_) return join("completes block ", block, " too early");
      symbol.complete = true;
    }
    return {};
  }

  std::string end() const {
    for (int rank = 0; rank < size_; ++rank) {
      for (int block = 0; block < ranks_[0].blocks; ++block) {
        const bool promised = goal_ == Goal::kReduceScatter ? rank == block
                              : goal_ == Goal::kReduce      ? rank == root_
                                                            : true;
        if (promised && state_[rank][block] != Symbol{everyone_, true}) {
          return join("rank ", rank, " ends without the whole of block ", block);
        }
      }
    }
    return {};
  }

  std::span<const Schedule> ranks_;
  Goal goal_;
  int root_;
  int size_;
  std::uint64_t everyone_ = 0;
  std::vector<std::vector<Symbol>> state_;  // [rank][block]
};

}  // namespace

std::string check(std::span<const Schedule> ranks, Goal goal, int root) {
  return Checker(ranks, goal, root).run();
}

}  // namespace dpcomm
