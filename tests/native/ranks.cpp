// Every schedule, the direct collectives and split over threads, for the sanitizers. With the
// argument `race`, one buffer is changed while it is reduced.

#include <cstdio>
#include <thread>
#include <vector>

#include "engine/communicator.hpp"
#include "transport/shm.hpp"

namespace {

using namespace dpcomm;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::_Exit(1);
}

// Block b of rank r holds 10 r + b.
void direct_collectives(Communicator& comm, std::size_t count) {
  const int size = comm.size();
  std::vector<float> data;
  for (int block = 0; block < size; ++block) {
    data.insert(data.end(), count, static_cast<float>(10 * comm.rank() + block));
  }
  std::vector<float> out(count), all(size * count);
  const auto own = static_cast<float>(comm.rank());
  const auto sum = static_cast<float>(5 * size * (size - 1) + size * comm.rank());
  comm.reduce_scatter({.data = data.data(), .out = out.data(), .count = count});
  check(out.front() == sum && out.back() == sum, "reduce_scatter");
  comm.reduce_scatter({.data = data.data(), .out = out.data(), .count = count, .scale = 2});
  check(out.front() == 2 * sum && out.back() == 2 * sum, "scaled reduce_scatter");
  comm.all_to_all({.data = data.data(), .out = all.data(), .count = count});
  check(all.front() == own && all.back() == static_cast<float>(10 * (size - 1)) + own,
        "all_to_all");
  comm.all_gather({.data = data.data(), .out = all.data(), .count = count});
  check(all.front() == 0 && all.back() == static_cast<float>(10 * (size - 1)), "all_gather");
  comm.broadcast({.data = data.data(), .out = data.data(), .count = count, .root = size - 1});
  check(data[count - 1] == static_cast<float>(10 * (size - 1)), "broadcast");
  comm.reduce({.data = data.data(), .out = data.data(), .count = count, .root = 0});
  check(data[0] == static_cast<float>(10 * (size - 1) * (comm.rank() == 0 ? size : 1)), "reduce");
  comm.barrier();
}

void rank_body(std::shared_ptr<Transport> transport, bool race) {
  Communicator comm(std::move(transport));
  const float total = static_cast<float>(comm.size() * (comm.size() + 1) / 2);
  for (std::size_t count : {1UL, 7UL, 5000UL, 300001UL}) {
    for (Algorithm algorithm : kAlgorithms) {
      std::vector<float> data(count, static_cast<float>(comm.rank() + 1));
      Arguments arguments{.data = data.data(), .out = data.data(), .count = count};
      arguments.algorithm = algorithm;
      std::thread meddler;
      if (race && comm.rank() == 0) meddler = std::thread([&] { data[0] = 0; });
      comm.all_reduce(arguments);
      if (meddler.joinable()) meddler.join();
      if (!race) check(data.front() == total && data.back() == total, "all_reduce");
    }
  }
  for (std::size_t count : {1UL, 5000UL, 100001UL}) direct_collectives(comm, count);
  const auto half = comm.split(comm.rank() % 2, 0);
  std::vector<float> all(comm.size());
  const float own = static_cast<float>(comm.rank());
  comm.all_gather({.data = &own, .out = all.data(), .count = 1});
  check(all[comm.size() - 1] == static_cast<float>(comm.size() - 1), "all_gather");
  half->barrier();
}

}  // namespace

int main(int argc, char**) {
  constexpr int kSize = 4;
  auto transports = local_transports(kSize, 120);
  std::vector<std::thread> ranks;
  for (auto& transport : transports) ranks.emplace_back(rank_body, transport, argc > 1);
  for (std::thread& rank : ranks) rank.join();
  return 0;
}
