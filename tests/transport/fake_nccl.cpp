// Stands in for libnccl.so.2 where there is no GPU: the functions that dpcomm calls, among ranks
// that are threads of one process, on the memory of the CPU. A thread of each communicator does the
// work, so that calls come back in progress, wait for peers that are late, fail in the background
// and can be broken off, as NCCL's do. fake_nccl_* plant what tests want.

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/device.hpp"
#include "transport/nccl_library.hpp"

using namespace dpcomm;
using nccl::ncclComm;
using nccl::Result;

namespace {

struct Message {
  int from;
  int to;
  const void* data;
  std::size_t bytes;
};

// The ranks of one unique id.
struct Group {
  int joined = 0;
  std::list<Message> messages;  // not yet taken, in the order of their sending
};

std::mutex mutex;  // guards all that follows, and every rank's memory while it is copied
std::condition_variable changed;
std::map<int, std::shared_ptr<Group>> groups;
int groups_made = 0;
int version = 23004;
std::map<int, Result> planted;  // by rank: how its next operation ends

class Broken {};  // off, by ncclCommAbort

DType dtype_of(nccl::DataType type) {
  switch (type) {
    case nccl::kInt32:
      return DType::kInt32;
    case nccl::kInt64:
      return DType::kInt64;
    case nccl::kFloat16:
      return DType::kFloat16;
    case nccl::kFloat32:
      return DType::kFloat32;
    case nccl::kFloat64:
      return DType::kFloat64;
    case nccl::kBfloat16:
      return DType::kBFloat16;
    case nccl::kUint8:
      break;
  }
  return DType::kUInt8;
}

}  // namespace

struct nccl::ncclComm {
  int rank;
  int size;
  std::shared_ptr<Group> group;
  Result state = nccl::kInProgress;
  bool aborted = false;
  std::thread worker;

  using Lock = std::unique_lock<std::mutex>;

  template <class Until>
  void await(Lock& lock, Until until) {
    changed.wait(lock, [&] { return aborted || until(); });
    if (aborted) throw Broken();
  }

  void post(int to, const void* data, std::size_t bytes) {
    group->messages.push_back({rank, to, data, bytes});
    changed.notify_all();
  }

  // Copies the next message of `from` to here.
  void take(Lock& lock, int from, void* data, std::size_t bytes) {
    auto& all = group->messages;
    auto found = all.end();
    await(lock, [&] {
      found = std::find_if(all.begin(), all.end(),
                           [&](const Message& m) { return m.from == from && m.to == rank; });
      return found != all.end();
    });
    if (found->bytes != bytes) throw nccl::kInvalidUsage;
    if (bytes > 0) std::memcpy(data, found->data, bytes);
    all.erase(found);
    changed.notify_all();
  }

  // Until nobody reads this rank's memory any more.
  void await_taken(Lock& lock) {
    await(lock, [&] {
      return std::none_of(group->messages.begin(), group->messages.end(),
                          [&](const Message& m) { return m.from == rank; });
    });
  }

  // What was started before has been waited for.
  Result start(std::function<void(Lock&)> work) {
    if (worker.joinable()) worker.join();
    {
      const std::lock_guard lock(mutex);
      if (state != nccl::kInProgress && state != nccl::kSuccess) return state;
      state = nccl::kInProgress;
    }
    worker = std::thread([this, work = std::move(work)] {
      Lock lock(mutex);
      Result end = nccl::kSuccess;
      try {
        if (const auto fault = planted.extract(rank)) throw fault.mapped();
        work(lock);
      } catch (Result result) {
        end = result;
      } catch (Broken) {
        return;
      }
      state = end;
    });
    return nccl::kInProgress;
  }
};

namespace {

struct Transfer {
  ncclComm* comm;
  int peer;
  const void* from;
  void* to;  // of a receive
  std::size_t bytes;
};

thread_local bool grouping = false;
thread_local std::vector<Transfer> transfers;

}  // namespace

extern "C" {

void fake_nccl_set_version(int value) { version = value; }

void fake_nccl_fail(int rank, int result) {
  const std::lock_guard lock(mutex);
  planted[rank] = static_cast<Result>(result);
}

Result ncclGetVersion(int* value) {
  *value = version;
  return nccl::kSuccess;
}

Result ncclGetUniqueId(nccl::UniqueId* id) {
  const std::lock_guard lock(mutex);
  std::memcpy(id->internal, &++groups_made, sizeof(groups_made));
  return nccl::kSuccess;
}

Result ncclCommInitRankConfig(nccl::Comm* comm, int size, nccl::UniqueId id, int rank,
                              nccl::Config* config) {
  if (config->magic != 0xcafebeef || config->size != sizeof(*config) || config->blocking != 0) {
    return nccl::kInvalidArgument;
  }
  int name = 0;
  std::memcpy(&name, id.internal, sizeof(name));
  auto* const made = new ncclComm{.rank = rank, .size = size, .group = {}, .worker = {}};
  *comm = made;
  {
    const std::lock_guard lock(mutex);
    auto& group = groups[name];
    if (!group) group = std::make_shared<Group>();
    made->group = group;
    if (++group->joined == size) groups.erase(name);
    changed.notify_all();
  }
  return made->start([made](ncclComm::Lock& lock) {
    made->await(lock, [&] { return made->group->joined == made->size; });
  });
}

Result ncclCommAbort(nccl::Comm comm) {
  {
    const std::lock_guard lock(mutex);
    comm->aborted = true;
    comm->group->messages.remove_if([&](const Message& m) { return m.from == comm->rank; });
    changed.notify_all();
  }
  if (comm->worker.joinable()) comm->worker.join();
  delete comm;
  return nccl::kSuccess;
}

Result ncclCommGetAsyncError(nccl::Comm comm, Result* result) {
  const std::lock_guard lock(mutex);
  *result = comm->state;
  return nccl::kSuccess;
}

const char* ncclGetErrorString(Result) { return "a planted error"; }
const char* ncclGetLastError(nccl::Comm) { return "of the stand-in"; }

Result ncclGroupStart() {
  grouping = true;
  return nccl::kSuccess;
}

Result ncclSend(const void* data, std::size_t count, nccl::DataType, int peer, nccl::Comm comm,
                Stream) {
  if (!grouping) return nccl::kInvalidUsage;
  transfers.push_back({comm, peer, data, nullptr, count});
  return nccl::kSuccess;
}

Result ncclRecv(void* data, std::size_t count, nccl::DataType, int peer, nccl::Comm comm, Stream) {
  if (!grouping) return nccl::kInvalidUsage;
  transfers.push_back({comm, peer, nullptr, data, count});
  return nccl::kSuccess;
}

Result ncclGroupEnd() {
  grouping = false;
  if (transfers.empty()) return nccl::kSuccess;
  ncclComm* const comm = transfers.front().comm;
  return comm->start([comm, all = std::exchange(transfers, {})](ncclComm::Lock& lock) {
    for (const Transfer& t : all) {
      if (!t.to) comm->post(t.peer, t.from, t.bytes);
    }
    for (const Transfer& t : all) {
      if (t.to) comm->take(lock, t.peer, t.to, t.bytes);
    }
    comm->await_taken(lock);
  });
}

Result ncclReduceScatter(const void* data, void* shard, std::size_t count, nccl::DataType type,
                         nccl::Reduction reduction, nccl::Comm comm, Stream) {
  const DType dtype = dtype_of(type);
  const std::size_t bytes = count * size_of(dtype);
  const RedOp op = reduction == nccl::kMax   ? RedOp::kMax
                   : reduction == nccl::kMin ? RedOp::kMin
                                             : RedOp::kSum;
  return comm->start([=](ncclComm::Lock& lock) {
    const auto* const blocks = static_cast<const std::byte*>(data);
    std::vector<std::byte> staged(bytes * comm->size);
    std::vector<const void*> parts;
    for (int peer = 0; peer < comm->size; ++peer) {
      if (peer != comm->rank) comm->post(peer, blocks + peer * bytes, bytes);
    }
    for (int peer = 0; peer < comm->size; ++peer) {
      const void* part = blocks + peer * bytes;
      if (peer != comm->rank) {
        comm->take(lock, peer, staged.data() + peer * bytes, bytes);
        part = staged.data() + peer * bytes;
      }
      parts.push_back(part);
    }
    comm->await_taken(lock);
    combine(dtype, op, parts, {&shard, 1}, count);
  });
}

Result ncclAllGather(const void* shard, void* out, std::size_t count, nccl::DataType type,
                     nccl::Comm comm, Stream) {
  const std::size_t bytes = count * size_of(dtype_of(type));
  return comm->start([=](ncclComm::Lock& lock) {
    auto* const blocks = static_cast<std::byte*>(out);
    for (int peer = 0; peer < comm->size; ++peer) {
      if (peer != comm->rank) comm->post(peer, shard, bytes);
    }
    for (int peer = 0; peer < comm->size; ++peer) {
      if (peer != comm->rank) comm->take(lock, peer, blocks + peer * bytes, bytes);
    }
    comm->await_taken(lock);
    if (blocks + comm->rank * bytes != shard) {
      std::memcpy(blocks + comm->rank * bytes, shard, bytes);
    }
  });
}

}  // extern "C"
