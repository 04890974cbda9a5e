// What the memory between the cores can do: memory hop, or memory limit -np RANKS BUDGET BYTES….
//
// hop: nanoseconds that a cache line takes from one core to the other, the midmean of many round
// trips, halved.
// limit: BYTES and the seconds of the least that a sum of float32 in place by RANKS processes is,
// pinned, timed and written anew before each call as benchmarks/collectives.py has it: all meet,
// each adds its slice of all buffers, which lie in shared memory, into all of them, and all meet
// again. What is short is posted beside the mark of a meeting, and needs one. A rank that waits
// spins where each has a core, and yields where not. Nothing is checked, and nobody may be late.
// Ranks do not claim the lines they are about to write: across two dies, 8 bytes can be faster.

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

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

// The mean of the middle half, see mpi_allreduce.c.
double midmean(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t quarter = values.size() / 4;
  return std::accumulate(values.begin() + quarter, values.end() - quarter, 0.0) /
         static_cast<double>(values.size() - 2 * quarter);
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
  return midmean(samples);
}

// How often a rank has arrived, and what it adds, in the same cache line where that fits.
struct alignas(64) Mark {
  static constexpr std::size_t kBeside = 48, kPosted = 4096;  // bytes

  std::atomic<unsigned> arrived{0};
  float beside[kBeside / sizeof(float)] = {};
  alignas(64) float behind[kPosted / sizeof(float)] = {};

  float* posted(std::size_t bytes) { return bytes <= kBeside ? beside : behind; }
};
struct Board {
  Mark marks[2];  // in turns: who has seen all of one knows that all are done with the other
};

using Line = float __attribute__((vector_size(64)));

class Group {
 public:
  explicit Group(int ranks)
      : ranks_(ranks), cores_(static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN))) {
    boards_ = share<Board>(ranks * sizeof(Board));
    while (rank_ + 1 < ranks && fork() != 0) ++rank_;
    pin(rank_ % cores_);
  }

  bool crowded() const { return ranks_ > cores_; }
  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  Mark& own() { return boards_[rank_].marks[(meetings_ + 1) % 2]; }
  Mark& mark(int rank) { return boards_[rank].marks[meetings_ % 2]; }

  void meet() {
    Mark& mine = own();
    mine.arrived.store(++meetings_, std::memory_order_release);
    if (!crowded()) __builtin_ia32_pause();  // who looks too soon takes the line that is written
    for (int rank = 0; rank < ranks_; ++rank) {
      while (rank != rank_ && mark(rank).arrived.load(std::memory_order_acquire) < meetings_) {
        crowded() ? static_cast<void>(sched_yield()) : __builtin_ia32_pause();
      }
    }
  }

 private:
  int ranks_;
  int cores_;
  int rank_ = 0;
  unsigned meetings_ = 0;
  Board* boards_;
};

void sum_posted(Group& group, float* own, std::size_t bytes) {
  std::memcpy(group.own().posted(bytes), own, bytes);
  group.meet();
  for (int rank = 0; rank < group.ranks(); ++rank) {
    if (rank == group.rank()) continue;  // what a peer reads of ours may be in its core by now
    const float* const theirs = group.mark(rank).posted(bytes);
    for (std::size_t i = 0; i < bytes / sizeof(float); ++i) own[i] += theirs[i];
  }
}

void sum_slices(Group& group, const std::vector<Line*>& buffers, std::size_t lines) {
  group.meet();
  const std::size_t ranks = buffers.size();
  const std::size_t end = lines * (group.rank() + 1) / ranks;
  for (std::size_t line = lines * group.rank() / ranks; line < end; ++line) {
    Line sum = buffers[0][line];
    for (std::size_t rank = 1; rank < ranks; ++rank) sum += buffers[rank][line];
    for (Line* buffer : buffers) buffer[line] = sum;
  }
  group.meet();
}

double limit(int ranks, double budget, std::size_t bytes) {
  constexpr int kFewest = 5, kMost = 2000;
  constexpr double kSpeed = 1e10;  // bytes of all ranks in a second, to begin with
  const double fit = budget * kSpeed / (static_cast<double>(bytes) * ranks);
  const int calls = static_cast<int>(std::clamp<double>(fit, kFewest, kMost));
  std::vector<Line*> buffers;
  // Half a page apart: see csrc/base/cache.hpp.
  constexpr std::size_t kApart = 2048;
  for (int rank = 0; rank < ranks; ++rank) {
    buffers.push_back(share<Line>(bytes + kApart) + rank % 2 * kApart / sizeof(Line));
  }
  auto* const seconds = share<double>(sizeof(double) * calls * ranks);
  Group group(ranks);
  const int rank = group.rank();
  for (int call = 0; call < calls; ++call) {
    std::memset(buffers[rank], call & 1, bytes);
    group.meet();
    const auto begin = Clock::now();
    if (bytes <= Mark::kPosted) {
      sum_posted(group, reinterpret_cast<float*>(buffers[rank]), bytes);
    } else {
      sum_slices(group, buffers, bytes / sizeof(Line));
    }
    seconds[call * ranks + rank] = since(begin);
  }
  group.meet();
  if (rank != ranks - 1) _exit(0);  // the last is the parent of all others
  std::vector<double> slowest;
  for (int call = 0; call < calls; ++call) {
    const double* const times = seconds + call * ranks;
    slowest.push_back(*std::max_element(times, times + ranks));
  }
  return midmean(slowest);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "hop") {
    std::printf("%.1f\n", hop());
  } else if (argc > 5 && std::string_view(argv[1]) == "limit") {
    for (int size = 5; size < argc; ++size) {
      const std::size_t bytes = std::strtoull(argv[size], nullptr, 10);
      std::printf("%zu %.10f\n", bytes, limit(std::atoi(argv[3]), std::atof(argv[4]), bytes));
      std::fflush(stdout);
    }
  } else {
    std::fprintf(stderr, "usage: memory hop, or memory limit -np RANKS BUDGET BYTES…\n");
    return 2;
  }
}
