// Every schedule, the direct all-reduce and split over threads, for the sanitizers. With the
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
