#include "transport/nccl.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

namespace dpcomm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPatience = 1e-3;  // seconds of looking again at once, before naps
constexpr double kSlice = 0.1;      // seconds of naps until the next look at peers
constexpr unsigned kNap = 50;       // microseconds

nccl::DataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return nccl::kFloat64;
    case DType::kFloat32:
      return nccl::kFloat32;
    case DType::kBFloat16:
      return nccl::kBfloat16;
    case DType::kFloat16:
      return nccl::kFloat16;
    case DType::kInt64:
      return nccl::kInt64;
    case DType::kInt32:
      return nccl::kInt32;
    case DType::kUInt8:
      break;
  }
  return nccl::kUint8;
}

nccl::Reduction reduction_of(RedOp redop) {
  return redop == RedOp::kMax ? nccl::kMax : redop == RedOp::kMin ? nccl::kMin : nccl::kSum;
}

}  // namespace

NcclTransport::NcclTransport(const nccl::Library& library, std::shared_ptr<Transport> host,
                             std::shared_ptr<Device> device, int max_ctas, const Stamp& stamp)
    : Transport(host->rank(), host->size(), host->timeout()),
      library_(library),
      host_(std::move(host)),
      device_(std::move(device)),
      max_ctas_(max_ctas) {
  on_wait(host_->wait_callback());
  try {
    open(stamp);
  } catch (...) {
    close();
    throw;
  }
}

// Rank 0 makes the name of the meeting and tells it to the others.
void NcclTransport::open(const Stamp& stamp) {
  nccl::UniqueId id{};
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  if (rank() == 0) {
    check(stamp, library_.get_unique_id(&id), "ncclGetUniqueId");
    for (int peer = 1; peer < size(); ++peer) sends.push_back({peer, &id, sizeof(id)});
  } else {
    receives.push_back({0, &id, sizeof(id)});
  }
  host_->exchange(stamp, sends, receives);
  nccl::Config config;
  config.blocking = 0;
  if (max_ctas_ > 0) config.min_ctas = config.max_ctas = max_ctas_;
  settle(stamp, library_.comm_init(&comm_, size(), id, rank(), &config), "ncclCommInitRankConfig");
}

void NcclTransport::exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                             std::span<const Incoming> receives) {
  enter(stamp);
  check(stamp, library_.group_start(), "ncclGroupStart");
  for (const Outgoing& send : sends) {
    if (send.bytes == 0) continue;
    check(stamp,
          library_.send(send.data, send.bytes, nccl::kUint8, send.peer, comm_, device_->stream()),
          "ncclSend");
  }
  for (const Incoming& receive : receives) {
    if (receive.bytes == 0) continue;
    check(stamp,
          library_.receive(receive.data, receive.bytes, nccl::kUint8, receive.peer, comm_,
                           device_->stream()),
          "ncclRecv");
  }
  settle(stamp, library_.group_end(), "ncclGroupEnd");
}

void NcclTransport::reduce_scatter(const Stamp& stamp, const void* data, void* shard,
                                   std::size_t count) {
  enter(stamp);
  settle(stamp,
         library_.reduce_scatter(data, shard, count, type_of(stamp.dtype),
                                 reduction_of(stamp.redop), comm_, device_->stream()),
         "ncclReduceScatter");
}

void NcclTransport::all_gather(const Stamp& stamp, const void* shard, void* out,
                               std::size_t count) {
  enter(stamp);
  settle(stamp,
         library_.all_gather(shard, out, count, type_of(stamp.dtype), comm_, device_->stream()),
         "ncclAllGather");
}

// Who has met here knows that every GPU is done: none reads another's memory any more.
void NcclTransport::finish(const Stamp& stamp) {
  device_->mark();
  wait(stamp, [&] { return device_->done(); });
  meet(stamp);
}

void NcclTransport::enter(const Stamp& stamp) {
  check_failure();
  if (std::exchange(met_, stamp.sequence) != stamp.sequence) meet(stamp);
}

// The dissemination barrier (Hensgen, Finkel and Manber, 1988), of empty messages: the first round
// is a ring, in which ranks that disagree have somewhere a neighbour that differs.
void NcclTransport::meet(Stamp stamp) {
  stamp.round = stamp.rounds = 0;
  for (int step = 1; step < size(); step *= 2) {
    const Outgoing to{(rank() + step) % size(), nullptr, 0};
    const Incoming from{(rank() + size() - step) % size(), nullptr, 0};
    host_->exchange(stamp, {&to, 1}, {&from, 1});
  }
}

template <class Look>
void NcclTransport::wait(const Stamp& stamp, Look look) {
  const auto begun = Clock::now();
  double next_check = kSlice;
  while (!look()) {
    const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
    if (seconds < kPatience) {
      ::sched_yield();
      continue;
    }
    ::usleep(kNap);
    nccl::Result result = nccl::kSuccess;
    if (comm_) library_.get_async_error(comm_, &result);
    if (result != nccl::kInProgress) check(stamp, result, "in the background");
    if (seconds < next_check) continue;
    next_check += kSlice;
    check_failure();
    host_->check_peers_live(stamp);
    waiting();
    DPCOMM_CHECK(seconds < timeout(), TimeoutError, "timeout ", timeout(), " s in ",
                 position(stamp), " over nccl\n  this rank's GPU waits for another's",
                 "\n  fix: see the other ranks' logs above; rerun with NCCL_DEBUG=INFO, or with "
                 "more time: DPCOMM_TIMEOUT=",
                 2 * timeout());
  }
}

// Waits until NCCL has taken the call: it may still be connecting ranks.
void NcclTransport::settle(const Stamp& stamp, nccl::Result result, const char* call) {
  if (result == nccl::kInProgress) {
    wait(stamp, [&] {
      const nccl::Result asked = library_.get_async_error(comm_, &result);
      if (asked != nccl::kSuccess) result = asked;
      return result != nccl::kInProgress;
    });
  }
  check(stamp, result, call);
}

void NcclTransport::check(const Stamp& stamp, nccl::Result result, const char* call) {
  if (result == nccl::kSuccess || result == nccl::kInProgress) return;
  check_failure();  // of a peer, which NCCL noticed as well
  const char* const detail = comm_ ? library_.get_last_error(comm_) : nullptr;
  const std::string text = concat(
      "NCCL ", nccl::version_text(library_.version), " failed in ", position(stamp), ", ", call,
      ": ", library_.get_error_string(result), detail && *detail ? "\n  " : "",
      detail ? detail : "", "\n  fix: see the other ranks' logs; rerun with NCCL_DEBUG=INFO");
  if (result == nccl::kSystemError || result == nccl::kRemoteError) throw LostPeerError(text);
  throw EnvironmentError(text);
}

std::shared_ptr<Transport> NcclTransport::split(const Stamp& stamp,
                                                const std::vector<int>& members) {
  auto host = host_->split(stamp, members);
  host->set_whole(host_, members);
  return std::make_shared<NcclTransport>(library_, std::move(host), device_, max_ctas_, stamp);
}

void NcclTransport::abort(FailureKind kind, std::string_view reason) noexcept {
  host_->abort(kind, reason);
  close();
}

// Never waits for a peer, as destroying would. After finish() nothing is left to break off.
void NcclTransport::close() noexcept {
  if (comm_) library_.comm_abort(std::exchange(comm_, nullptr));
}

}  // namespace dpcomm
