// What the memory between two cores can do: memory hop, or memory limit BYTES.
//
// hop: nanoseconds that a cache line takes from one core to the other, the median of many round
// trips, halved.
// limit: seconds that two processes take for a = b = a + b of BYTES bytes each, in memory that they
// share, each written anew by one of them before: what an all-reduce of two ranks must do at least.

#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Shared {
  alignas(64) std::atomic<unsigned> arrived{0};
  alignas(64) std::atomic<double> seconds[2]{};
};

double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

template <class T>
T* share(std::size_t bytes) {
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::exit(3);
  return static_cast<T*>(memory);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double hop() {
  constexpr unsigned kTrips = 2000, kSamples = 31;
  alignas(64) std::atomic<unsigned> line{0};
  std::thread partner([&] {
    pin(1);
    for (unsigned at = 1; at < 2 * kTrips * kSamples; at += 2) {
      while (line.load(std::memory_order_acquire) != at) {
      }
      line.store(at + 1, std::memory_order_release);
    }
  });
  pin(0);
  std::vector<double> samples;
  unsigned at = 0;
  for (unsigned sample = 0; sample < kSamples; ++sample) {
    const auto begin = Clock::now();
    for (unsigned trip = 0; trip < kTrips; ++trip, at += 2) {
      line.store(at + 1, std::memory_order_release);
      while (line.load(std::memory_order_acquire) != at + 2) {
      }
    }
    samples.push_back(since(begin) / (2 * kTrips) * 1e9);
  }
  partner.join();
  return median(samples);
}

void meet(Shared& shared, unsigned& meetings) {
  meetings += 2;
  ++shared.arrived;
  while (shared.arrived.load() < meetings) {
  }
}

double limit(std::size_t bytes) {
  constexpr int kCalls = 15;
  const std::size_t count = bytes / sizeof(float);
  Shared& shared = *share<Shared>(sizeof(Shared));
  float* const buffers[] = {share<float>(bytes), share<float>(bytes)};
  const bool child = fork() == 0;
  pin(child);
  float* const a = buffers[0] + child * (count / 2);
  float* const b = buffers[1] + child * (count / 2);
  std::vector<double> slowest;
  unsigned meetings = 0;
  for (int call = 0; call < kCalls; ++call) {
    std::memset(buffers[child], call & 1, bytes);
    meet(shared, meetings);
    const auto begin = Clock::now();
#pragma GCC ivdep
    for (std::size_t i = 0; i < count / 2; ++i) a[i] = b[i] = a[i] + b[i];
    shared.seconds[child] = since(begin);
    meet(shared, meetings);
    slowest.push_back(std::max(shared.seconds[0].load(), shared.seconds[1].load()));
  }
  if (child) _exit(0);
  wait(nullptr);
  return median(slowest);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "hop") {
    std::printf("%.1f\n", hop());
  } else if (argc == 3 && std::string_view(argv[1]) == "limit") {
    std::printf("%.9f\n", limit(std::strtoull(argv[2], nullptr, 10)));
  } else {
    std::fprintf(stderr, "usage: memory hop, or memory limit BYTES\n");
    return 2;
  }
}
