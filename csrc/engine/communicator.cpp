#include "engine/communicator.hpp"

#include <algorithm>
#include <cstring>

#include "base/error.hpp"
#include "base/log.hpp"
#include "engine/vendor.hpp"
#include "schedule/pipeline.hpp"

namespace dpcomm {
namespace {

constexpr std::size_t kShortBytes = 16384;

// Names as stamps hold them.
using Label = std::array<char, sizeof(Stamp::algorithm)>;
constexpr auto kLabels = [] {
  std::array<Label, kAlgorithmNames.size()> labels{};
  for (std::size_t i = 0; i < labels.size(); ++i) {
    kAlgorithmNames[i].copy(labels[i].data(), sizeof(Label) - 1);
  }
  return labels;
}();

bool is_float(DType dtype) {
  return dtype != DType::kInt64 && dtype != DType::kInt32 && dtype != DType::kUInt8;
}

// What this rank contributes to a sum.
void take_input(Device& device, void* to, const Arguments& arguments, std::size_t count) {
  device.multiply(arguments.dtype, to, arguments.data, count, arguments.scale);
}

}  // namespace

Communicator::Communicator(std::shared_ptr<Transport> transport, std::vector<int> hosts)
    : host_(std::move(transport)), hosts_(std::move(hosts)) {
  if (hosts_.empty()) hosts_.assign(size(), 0);
  DPCOMM_CHECK(hosts_.size() == static_cast<std::size_t>(size()), UsageError, "rank ", rank(), "/",
               size(), ": ", hosts_.size(), " hosts are given: give one for each rank");
  if (ShmTransport* const memory = host_.transport->shared_memory()) {
    direct_ = std::make_unique<Direct>(*memory, rank(), size());
  }
  if (!verbose_) return;
  std::string ranks;
  for (int peer = 0; peer < size(); ++peer) ranks += concat(" ", host_.transport->job_rank(peer));
  log(LogLevel::kInfo, concat("rank ", rank(), "/", size(), " over ", host_.transport->name(),
                              ", of the job's ranks", ranks));
}

void Communicator::all_reduce(const Arguments& arguments) {
  const std::lock_guard lock(mutex_);
  const Algorithm algorithm = choose(Operation::kAllReduce, arguments);
  if (algorithm == Algorithm::kMpi) return mpi_all_reduce(arguments);
  if (algorithm == Algorithm::kNccl) return run_vendor(Operation::kAllReduce, arguments);
  if (runs_direct(algorithm, arguments)) return run_direct(Operation::kAllReduce, arguments);
  take_input(*channel(arguments).transport->device(), arguments.out, arguments, arguments.count);
  run(Operation::kAllReduce, algorithm, {arguments.out, arguments.count, kGrain}, arguments);
}

// The library's wait has no deadline and its messages no header: ranks agree before they enter it.
void Communicator::mpi_all_reduce(const Arguments& arguments) {
  DPCOMM_CHECK(!arguments.epilogue, UsageError, "rank ", rank(), "/", size(),
               ": algo 'mpi' gives no one the whole sum before the others: use ring");
  const Schedule& meeting =
      schedule(Operation::kBarrier, Algorithm::kRecursiveDoubling, arguments.root, 1);
  const Stamp stamp = next_stamp(Operation::kAllReduce, Algorithm::kMpi, arguments);
  Transport& transport = *host_.transport;
  transport.check_vendor(arguments.dtype);
  const void* input = arguments.data;
  if (arguments.scale != 1) {
    take_input(*host_.transport->device(), arguments.out, arguments, arguments.count);
    input = arguments.out;
  }
  guarded(transport, stamp, [&] {
    execute(meeting, transport, {nullptr, 0, 1}, stamp, {}, host_.staging);
    transport.vendor_all_reduce(stamp, input, arguments.out);
  });
  if (arguments.redop == RedOp::kMean) {
    divide(arguments.dtype, arguments.out, arguments.count, size());
  }
}

void Communicator::reduce_scatter(const Arguments& arguments) {
  const std::lock_guard lock(mutex_);
  const Algorithm algorithm = choose(Operation::kReduceScatter, arguments);
  if (algorithm == Algorithm::kNccl) return run_vendor(Operation::kReduceScatter, arguments);
  if (runs_direct(algorithm, arguments)) return run_direct(Operation::kReduceScatter, arguments);
  Channel& over = channel(arguments);
  Device& device = *over.transport->device();
  const std::size_t shard = arguments.count * size_of(arguments.dtype);
  std::byte* const work = over.scratch.at_least(shard * size());
  take_input(device, work, arguments, arguments.count * size());
  run(Operation::kReduceScatter, algorithm, {work, arguments.count * size(), 1}, arguments);
  device.copy(arguments.out, work + shard * rank(), shard);
}

void Communicator::all_gather(const Arguments& arguments) {
  const std::lock_guard lock(mutex_);
  const Algorithm algorithm = choose(Operation::kAllGather, arguments);
  if (algorithm == Algorithm::kNccl) return run_vendor(Operation::kAllGather, arguments);
  if (runs_direct(algorithm, arguments)) return run_direct(Operation::kAllGather, arguments);
  const std::size_t shard = arguments.count * size_of(arguments.dtype);
  channel(arguments).transport->device()->copy(
      static_cast<std::byte*>(arguments.out) + shard * rank(), arguments.data, shard);
  run(Operation::kAllGather, algorithm, {arguments.out, arguments.count * size(), 1}, arguments);
}

void Communicator::broadcast(const Arguments& arguments) {
  const std::lock_guard lock(mutex_);
  check_root(arguments);
  if (sees_memory(arguments)) return run_direct(Operation::kBroadcast, arguments);
  if (rank() == arguments.root) {
    channel(arguments).transport->device()->copy(arguments.out, arguments.data,
                                                 arguments.count * size_of(arguments.dtype));
  }
  run(Operation::kBroadcast, Algorithm::kTree, {arguments.out, arguments.count, kGrain}, arguments);
}

void Communicator::reduce(const Arguments& arguments) {
  const std::lock_guard lock(mutex_);
  check_root(arguments);
  if (sees_memory(arguments)) return run_direct(Operation::kReduce, arguments);
  Channel& over = channel(arguments);
  void* work = arguments.out;
  if (rank() != arguments.root) {
    work = over.scratch.at_least(arguments.count * size_of(arguments.dtype));
  }
  take_input(*over.transport->device(), work, arguments, arguments.count);
  run(Operation::kReduce, Algorithm::kTree, {work, arguments.count, kGrain}, arguments);
}

void Communicator::all_to_all(const Arguments& arguments) {
  const std::lock_guard lock(mutex_);
  DPCOMM_CHECK(arguments.data != arguments.out || arguments.count == 0, UsageError, "rank ", rank(),
               "/", size(), ": all_to_all in place is not supported: give another out=");
  if (sees_memory(arguments)) return run_direct(Operation::kAllToAll, arguments);
  Transport& transport = *channel(arguments).transport;
  Stamp stamp = next_stamp(Operation::kAllToAll, Algorithm::kRoundRobin, arguments);
  stamp.round = stamp.rounds = 1;
  const std::size_t shard = arguments.count * size_of(arguments.dtype);
  const auto* const data = static_cast<const std::byte*>(arguments.data);
  auto* const out = static_cast<std::byte*>(arguments.out);
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + step) % size();
    const int from = (rank() + size() - step) % size();
    sends.push_back({to, data + shard * to, shard});
    receives.push_back({from, out + shard * from, shard});
  }
  transport.device()->copy(out + shard * rank(), data + shard * rank(), shard);
  guarded(transport, stamp, [&] { transport.exchange(stamp, sends, receives); });
}

void Communicator::open_gpu(const OpenGpu& open) {
  const std::lock_guard lock(mutex_);
  Stamp stamp = next_stamp(Operation::kOpenGpu, Algorithm::kNccl, {});
  stamp.round = stamp.rounds = 1;
  guarded(*host_.transport, stamp,
          [&] { gpu_ = std::make_unique<Channel>(open(host_.transport, stamp)); });
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  std::vector<std::int32_t> all(2 * static_cast<std::size_t>(size()));
  const std::int32_t own[] = {color, key};
  all_gather({.data = own, .out = all.data(), .count = 2, .dtype = DType::kInt32});

  const std::lock_guard lock(mutex_);
  Stamp stamp = next_stamp(Operation::kSplit, Algorithm::kTree, {});
  stamp.round = stamp.rounds = 1;
  if (color < 0) return nullptr;
  std::vector<int> members;
  for (int peer = 0; peer < size(); ++peer) {
    if (all[2 * peer] == color) members.push_back(peer);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](int a, int b) { return all[2 * a + 1] < all[2 * b + 1]; });
  std::shared_ptr<Transport> part;
  guarded(*host_.transport, stamp, [&] { part = host_.transport->split(stamp, members); });
  part->set_whole(host_.transport, members);
  std::vector<int> hosts;
  for (int member : members) hosts.push_back(hosts_[member]);
  auto made = std::make_unique<Communicator>(std::move(part), std::move(hosts));
  made->deterministic_ = deterministic_;
  return made;
}

void Communicator::barrier() {
  const std::lock_guard lock(mutex_);
  if (direct_) return run_direct(Operation::kBarrier, {});
  run(Operation::kBarrier, Algorithm::kRecursiveDoubling, {nullptr, 0, 1}, {});
}

void Communicator::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  if (gpu_) gpu_->transport->close();
  host_.transport->close();
}

void Communicator::run_direct(Operation operation, const Arguments& arguments) {
  Stamp stamp = next_stamp(operation, Algorithm::kRoundRobin, arguments);
  stamp.round = stamp.rounds = 1;
  guarded(*host_.transport, stamp, [&] { direct_->run(stamp, arguments); });
}

void Communicator::run_vendor(Operation operation, const Arguments& arguments) {
  Channel& over = channel(arguments);
  const Stamp stamp = next_stamp(operation, Algorithm::kNccl, arguments);
  guarded(*over.transport, stamp,
          [&] { dpcomm::run_vendor(*over.transport, stamp, arguments, over.scratch); });
}

Communicator::Channel& Communicator::channel(const Arguments& arguments) {
  if (!arguments.stream) return host_;
  DPCOMM_CHECK(gpu_, UsageError, "rank ", rank(), "/", size(),
               ": memory of a GPU before open_gpu()");
  gpu_->transport->device()->use(*arguments.stream);
  return *gpu_;
}

void Communicator::run(Operation operation, Algorithm algorithm, const Buffer& buffer,
                       const Arguments& arguments) {
  Channel& over = channel(arguments);
  const int chunks = chunks_for(algorithm, buffer.count * size_of(arguments.dtype));
  const Schedule& steps = schedule(operation, algorithm, arguments.root, chunks);
  const Stamp stamp = next_stamp(operation, algorithm, arguments);
  guarded(*over.transport, stamp, [&] {
    execute(steps, *over.transport, buffer, stamp, arguments.epilogue, over.staging);
  });
}

void Communicator::check_root(const Arguments& arguments) const {
  DPCOMM_CHECK(arguments.root >= 0 && arguments.root < size(), UsageError, "rank ", rank(), "/",
               size(), ": root ", arguments.root, " is no rank: use 0 to ", size() - 1);
}

Stamp Communicator::next_stamp(Operation operation, Algorithm algorithm,
                               const Arguments& arguments) {
  DPCOMM_CHECK(!closed_, UsageError, "rank ", rank(), "/", size(), ": ", name_of(operation),
               " on a communicator that is closed");
  DPCOMM_CHECK(arguments.redop != RedOp::kMean || is_float(arguments.dtype), UsageError, "rank ",
               rank(), "/", size(), ": the mean of ", name_of(arguments.dtype),
               " is not defined: use op='sum'");
  DPCOMM_CHECK(
      arguments.scale == 1 || (arguments.redop == RedOp::kSum && is_float(arguments.dtype)),
      UsageError, "rank ", rank(), "/", size(), ": scale=", arguments.scale, " with op='",
      name_of(arguments.redop), "' of ", name_of(arguments.dtype),
      " is not defined: use op='sum' of a floating-point type");
  Stamp stamp{.sequence = ++sequence_,
              .count = arguments.count,
              .root = arguments.root,
              .dtype = arguments.dtype,
              .operation = operation,
              .redop = arguments.redop};
  std::memcpy(stamp.algorithm, kLabels[static_cast<std::size_t>(algorithm)].data(), sizeof(Label));
  if (arguments.epilogue) {
    arguments.epilogue.purpose.copy(stamp.epilogue, sizeof(stamp.epilogue) - 1);
  }
  if (verbose_) log_stamp(stamp, algorithm);
  return stamp;
}

void Communicator::log_stamp(const Stamp& stamp, Algorithm algorithm) {
  if (logs(LogLevel::kTrace)) {
    log(LogLevel::kTrace, describe(stamp));
  } else if (logged_.emplace(stamp.operation, algorithm).second) {
    log(LogLevel::kInfo, concat("the first by this algorithm: ", describe(stamp)));
  }
}

// What ends one rank's collective ends those of all.
template <class Body>
void Communicator::guarded(Transport& transport, const Stamp& stamp, Body body) {
  try {
    body();
    transport.finish(stamp);
  } catch (const MismatchError& error) {
    transport.abort(FailureKind::kMismatch, error.what());
    throw;
  } catch (const TimeoutError& error) {
    transport.abort(FailureKind::kTimeout, error.what());
    throw;
  } catch (const Error& error) {
    transport.abort(FailureKind::kLostPeer, error.what());
    throw;
  } catch (...) {  // Ctrl-C, or what the epilogue threw: the rounds are not finished
    transport.abort(FailureKind::kLostPeer, concat("interrupted in ", describe(stamp)));
    throw;
  }
}

const Schedule& Communicator::schedule(Operation operation, Algorithm algorithm, int root,
                                       int chunks) {
  const auto key = std::make_tuple(operation, algorithm, root, chunks);
  const auto found = schedules_.find(key);
  if (found != schedules_.end()) return found->second;
  const auto build = [&] {
    switch (operation) {
      case Operation::kReduceScatter:
        return dpcomm::reduce_scatter(algorithm, rank(), size());
      case Operation::kAllGather:
        return dpcomm::all_gather(algorithm, rank(), size());
      case Operation::kBroadcast:
        return dpcomm::broadcast(rank(), size(), root);
      case Operation::kReduce:
        return dpcomm::reduce(rank(), size(), root);
      default:
        return dpcomm::all_reduce(algorithm, rank(), size(), hosts_);
    }
  };
  return schedules_.emplace(key, pipelined(build(), chunks)).first->second;
}

void Communicator::tune(Operation operation, DType dtype, std::vector<Choice> choices) {
  const std::lock_guard lock(mutex_);
  tuning_[static_cast<std::size_t>(operation)][static_cast<std::size_t>(dtype)] =
      std::move(choices);
}

Algorithm Communicator::choose(Operation operation, const Arguments& arguments) const {
  const bool on_gpu = arguments.stream.has_value();
  if (arguments.algorithm) {
    DPCOMM_CHECK(*arguments.algorithm != (on_gpu ? Algorithm::kMpi : Algorithm::kNccl), UsageError,
                 "rank ", rank(), "/", size(), ": algo '", name_of(*arguments.algorithm),
                 "' is not for memory of ", on_gpu ? "a GPU" : "the CPU", ": give another algo");
    return *arguments.algorithm;
  }
  if (on_gpu) {
    const bool in_order = deterministic_ && operation != Operation::kAllGather;
    return in_order ? Algorithm::kRoundRobin : Algorithm::kNccl;
  }
  const std::size_t bytes = arguments.count * size_of(arguments.dtype);
  const auto& choices =
      tuning_[static_cast<std::size_t>(operation)][static_cast<std::size_t>(arguments.dtype)];
  for (const Choice& choice : choices) {
    if (bytes <= choice.up_to) return choice.algorithm;
  }
  return untuned(operation, bytes);
}

// Shared memory knows no messages in a direct exchange; elsewhere few rounds for short ones, and
// few bytes for long ones.
Algorithm Communicator::untuned(Operation operation, std::size_t bytes) const {
  if (direct_ || (deterministic_ && operation != Operation::kAllGather)) {
    return Algorithm::kRoundRobin;
  }
  if (operation == Operation::kAllReduce && bytes <= kShortBytes) {
    return Algorithm::kRecursiveDoubling;
  }
  return Algorithm::kRing;
}

}  // namespace dpcomm
