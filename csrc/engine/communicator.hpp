#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "base/log.hpp"
#include "engine/arguments.hpp"
#include "engine/direct.hpp"
#include "engine/execute.hpp"
#include "schedule/schedule.hpp"
#include "transport/transport.hpp"

namespace dpcomm {

// One line of a tuning: `algorithm` for buffers of up to so many bytes.
struct Choice {
  std::size_t up_to;
  Algorithm algorithm;
};

// The collectives of one group of ranks. All ranks call the same ones in the same order. An error
// of the transport ends the group: it is raised on every rank, and by every later call.
class Communicator {
 public:
  // `hosts` says which host each rank is on; empty: all on one.
  explicit Communicator(std::shared_ptr<Transport> transport, std::vector<int> hosts = {});

  int rank() const { return host_.transport->rank(); }
  int size() const { return host_.transport->size(); }
  const std::shared_ptr<Transport>& transport() const { return host_.transport; }
  const std::vector<int>& hosts() const { return hosts_; }

  // Reductions whose algorithm is not given add in the order of ranks, whatever their length.
  void set_deterministic() { deterministic_ = true; }
  bool deterministic() const { return deterministic_; }

  // Another transport among the same ranks, for memory of a GPU. Collective.
  using OpenGpu = std::function<std::shared_ptr<Transport>(std::shared_ptr<Transport> host,
                                                           const Stamp& stamp)>;
  void open_gpu(const OpenGpu& open);

  // What is taken where no algorithm is given, by rising `up_to`; nothing: the default. The same on
  // every rank.
  void tune(Operation operation, DType dtype, std::vector<Choice> choices);
  Algorithm choose(Operation operation, const Arguments& arguments) const;
  Algorithm untuned(Operation operation, std::size_t bytes) const;

  // out[count] = the reduction of all ranks' data[count], after the epilogue; the same bits on
  // every rank.
  void all_reduce(const Arguments& arguments);

  // out[count] = block `rank` of the reduction of all ranks' data[size * count].
  void reduce_scatter(const Arguments& arguments);

  // out[size * count] = all ranks' data[count], in the order of ranks.
  void all_gather(const Arguments& arguments);

  // out[count] = the root's data[count].
  void broadcast(const Arguments& arguments);

  // On the root, out[count] = the reduction of all ranks' data[count]; `out` of others is not used.
  void reduce(const Arguments& arguments);

  // out[j * count, (j + 1) * count) = rank j's data[rank * count, (rank + 1) * count), not in
  // place.
  void all_to_all(const Arguments& arguments);

  // The ranks that give the same color, in the order of `key`, then of rank; nullptr for a negative
  // color.
  std::unique_ptr<Communicator> split(int color, int key);

  // Returns once every rank has come.
  void barrier();

  // Ends the job's collectives on every rank, with the reason.
  void abort(std::string_view reason) { host_.transport->abort(FailureKind::kLostPeer, reason); }

  // This rank's part is over; every later call is an error.
  void close();

 private:
  // A transport, and memory of its device that is kept from call to call.
  struct Channel {
    explicit Channel(std::shared_ptr<Transport> over)
        : transport(std::move(over)), staging(transport->device()), scratch(transport->device()) {}

    std::shared_ptr<Transport> transport;
    Scratch staging;
    Scratch scratch;  // a copy of an input that must not change
  };

  // Where the collective's memory is reached.
  Channel& channel(const Arguments& arguments);
  void check_root(const Arguments& arguments) const;
  void run(Operation operation, Algorithm algorithm, const Buffer& buffer,
           const Arguments& arguments);
  Stamp next_stamp(Operation operation, Algorithm algorithm, const Arguments& arguments);
  void log_stamp(const Stamp& stamp, Algorithm algorithm);
  template <class Body>
  void guarded(Transport& transport, const Stamp& stamp, Body body);
  const Schedule& schedule(Operation operation, Algorithm algorithm, int root, int chunks);
  bool runs_direct(Algorithm algorithm, const Arguments& arguments) const {
    return sees_memory(arguments) && algorithm == Algorithm::kRoundRobin;
  }
  // Whether ranks see each other's.
  bool sees_memory(const Arguments& arguments) const { return direct_ && !arguments.stream; }
  void run_direct(Operation operation, const Arguments& arguments);
  void run_vendor(Operation operation, const Arguments& arguments);
  void mpi_all_reduce(const Arguments& arguments);

  Channel host_;
  std::unique_ptr<Channel> gpu_;
  std::vector<int> hosts_;
  std::unique_ptr<Direct> direct_;  // where ranks see each other's memory
  bool verbose_ = logs(LogLevel::kInfo);
  bool closed_ = false;
  std::uint64_t sequence_ = 0;
  bool deterministic_ = false;
  std::array<std::array<std::vector<Choice>, kDTypes>, kOperations> tuning_;
  std::map<std::tuple<Operation, Algorithm, int, int>, Schedule> schedules_;
  std::set<std::pair<Operation, Algorithm>> logged_;
  std::mutex mutex_;  // threads take turns
};

}  // namespace dpcomm
