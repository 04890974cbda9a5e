#include "simt/machine.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "simt/fiber.hpp"
#include "simt/memory.hpp"

thread_local dpcomm::simt::Index threadIdx, blockIdx, blockDim, gridDim;

namespace dpcomm::simt {
namespace {

constexpr unsigned kWave = 64;  // blocks at a time

std::atomic<Order> order = Order::kForward;

// Why a CUDA thread does not run.
enum class Wait { kNothing, kWarp, kBlock, kDone };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Thread {
  Thread(unsigned i, std::span<std::byte> stack, void (*body)(void*), void* argument)
      : index(i), fiber(stack, body, argument) {}

  unsigned index;
  Fiber fiber;
  Wait wait = Wait::kNothing;
  const char* operation = "";
  std::source_location where = {};
  std::uint64_t word = 0;
  std::optional<std::chrono::steady_clock::time_point> waits_since = {};
  std::deque<std::vector<Copy>> copies{1};  // by group; the last is not committed yet
  std::string fault = {};
};

// What a barrier orders, told to the thread sanitizer. A thread that has passed one may come to the
// next before others have left this one, hence two places in turn.
class Ordering {
 public:
  void* place() { return &places_[passed_ % 2]; }
  void pass() { ++passed_; }

 private:
  std::uint64_t places_[2] = {};
  unsigned passed_ = 0;
};

struct Warp {
  std::array<std::uint64_t, kWarpSize> words{};
  Ordering ordering;
};

std::string name(const std::source_location& where) {
  return concat(where.file_name(), ":", where.line());
}

std::string describe(const Thread& thread) {
  if (thread.wait == Wait::kDone) return concat("thread ", thread.index, " has returned");
  return concat("thread ", thread.index, " is at ", thread.operation, " in ", name(thread.where));
}

bool together(const Thread& a, const Thread& b) {
  return a.wait == b.wait && a.where.line() == b.where.line() &&
         a.where.column() == b.where.column() &&
         std::strcmp(a.where.file_name(), b.where.file_name()) == 0;
}

class Block;
thread_local Block* block = nullptr;

class Block {
 public:
  Block(unsigned index, const Shape& shape, const std::function<void()>& kernel,
        const std::atomic<bool>& stop)
      : index_(index),
        shape_(shape),
        kernel_(kernel),
        stop_(stop),
        shared_(shape.shared_bytes),
        stacks_(shape.threads),
        warps_(shape.threads / kWarpSize) {
    poison_static_shared();
    block = this;
    blockIdx = {index};
    blockDim = {shape_.threads, 1, 1};
    gridDim = {shape_.blocks, 1, 1};
    const auto body = [](void* self) { static_cast<Block*>(self)->body(); };
    for (unsigned i = 0; i < shape.threads; ++i) threads_.emplace_back(i, stacks_[i], body, this);
  }

  void run() {
    while (!finished()) {
      if (stop_) return;
      for (std::size_t w = 0; w < warps_.size(); ++w) step(reversed() ? warps_.size() - 1 - w : w);
      pass_barrier();
    }
    acquire(&end_);
    DPCOMM_CHECK(shared_.intact(), Fault, "block ", index_, " wrote past its ", shape_.shared_bytes,
                 " bytes of dynamic shared memory");
  }

  void* shared() { return shared_.data(); }
  Thread& current() { return threads_[threadIdx.x]; }
  Warp& warp() { return warps_[threadIdx.x / kWarpSize]; }
  Ordering& ordering() { return ordering_; }

  // On the fiber: stop here until the scheduler lets it go on.
  void stop_at(Wait wait, const char* operation, std::source_location where) {
    Thread& thread = current();
    thread.wait = wait;
    if (wait != Wait::kNothing) thread.waits_since.reset();
    thread.operation = operation;
    thread.where = where;
    thread.fiber.suspend();
  }

 private:
  bool reversed() const { return order == Order::kReverse; }

  bool finished() const {
    return std::all_of(threads_.begin(), threads_.end(),
                       [](const Thread& thread) { return thread.wait == Wait::kDone; });
  }

  void body() {
    kernel_();
    release(&end_);
    current().wait = Wait::kDone;
  }

  void resume(Thread& thread) {
    threadIdx = {thread.index};
    thread.fiber.resume();
    DPCOMM_CHECK(thread.fault.empty(), Fault, thread.fault);
  }

  // Runs a warp until its lanes wait for other warps, have returned, or only spin.
  void step(std::size_t w) {
    const auto lanes = threads_.begin() + static_cast<std::ptrdiff_t>(w * kWarpSize);
    for (;;) {
      for (unsigned i = 0; i < kWarpSize; ++i) {
        Thread& lane = lanes[reversed() ? kWarpSize - 1 - i : i];
        if (lane.wait == Wait::kNothing) resume(lane);
      }
      const auto is = [&](Wait wait) {
        return [wait](const Thread& lane) { return lane.wait == wait; };
      };
      if (std::any_of(lanes, lanes + kWarpSize, is(Wait::kNothing))) return;
      const auto first = std::find_if(lanes, lanes + kWarpSize, is(Wait::kWarp));
      if (first == lanes + kWarpSize) return;
      for (unsigned i = 0; i < kWarpSize; ++i) {
        DPCOMM_CHECK(together(*first, lanes[i]), Fault, "divergent warp in block ", index_, ": ",
                     describe(*first), ", but ", describe(lanes[i]));
        warps_[w].words[i] = lanes[i].word;
      }
      for (unsigned i = 0; i < kWarpSize; ++i) lanes[i].wait = Wait::kNothing;
      warps_[w].ordering.pass();
    }
  }

  // Opens the block's barrier once all threads stand before it.
  void pass_barrier() {
    const auto is = [](Wait wait) {
      return [wait](const Thread& thread) { return thread.wait == wait; };
    };
    if (std::any_of(threads_.begin(), threads_.end(), is(Wait::kNothing))) return;
    const auto first = std::find_if(threads_.begin(), threads_.end(), is(Wait::kBlock));
    if (first == threads_.end()) return;
    for (const Thread& thread : threads_) {
      DPCOMM_CHECK(together(*first, thread), Fault, "divergent barrier in block ", index_, ": ",
                   describe(*first), ", but ", describe(thread));
    }
    for (Thread& thread : threads_) thread.wait = Wait::kNothing;
    ordering_.pass();
  }

  const unsigned index_;
  const Shape& shape_;
  const std::function<void()>& kernel_;
  const std::atomic<bool>& stop_;
  SharedMemory shared_;
  Stacks stacks_;
  std::deque<Thread> threads_;
  std::deque<Warp> warps_;
  Ordering ordering_;
  std::uint64_t end_ = 0;
};

}  // namespace

void set_order(Order value) { order = value; }

Device& device() {
  static Device device;
  return device;
}

void run(const Shape& shape, const std::function<void()>& kernel) {
  DPCOMM_CHECK(shape.blocks > 0 && shape.threads > 0 && shape.threads % kWarpSize == 0 &&
                   shape.threads <= 1024,
               Fault, "launch of ", shape.blocks, " blocks of ", shape.threads,
               " threads: use at least one block and a multiple of 32 threads up to 1024");
  std::atomic<bool> stop = false;
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&](unsigned index) {
    try {
      Block(index, shape, kernel, stop).run();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      stop = true;
    }
  };
  // A new thread for each block, whose history the thread sanitizer does not mix with another's.
  const unsigned wave = shape.cooperative ? shape.blocks : kWave;
  for (unsigned begin = 0; begin < shape.blocks && !stop; begin += wave) {
    std::vector<std::jthread> threads;
    for (unsigned i = begin; i < std::min(begin + wave, shape.blocks); ++i) {
      threads.emplace_back(work, i);
    }
  }
  if (error) std::rethrow_exception(error);
}

void* dynamic_shared() { return block->shared(); }

void block_barrier(std::source_location where) {
  void* place = block->ordering().place();
  release(place);
  block->stop_at(Wait::kBlock, "__syncthreads", where);
  acquire(place);
}

void warp_barrier(std::source_location where) {
  void* place = block->warp().ordering.place();
  release(place);
  block->stop_at(Wait::kWarp, "__syncwarp", where);
  acquire(place);
}

const std::array<std::uint64_t, kWarpSize>& warp_exchange(std::uint64_t word,
                                                          std::source_location where) {
  block->current().word = word;
  block->stop_at(Wait::kWarp, "a warp collective", where);
  return block->warp().words;
}

unsigned lane() { return threadIdx.x % kWarpSize; }

void yield(std::source_location where) {
  auto& since = block->current().waits_since;
  const auto now = std::chrono::steady_clock::now();
  if (!since) since = now;
  if (std::chrono::duration<double>(now - *since).count() > device().patience)
    fault(where, "waits for a value that does not come");
  std::this_thread::yield();
  block->stop_at(Wait::kNothing, "a look at memory", where);
}

void copy_async(void* to, const void* from, std::size_t bytes) {
  block->current().copies.back().push_back({to, from, bytes});
}

void commit_copies() { block->current().copies.emplace_back(); }

void wait_for_copies(std::size_t groups_in_flight) {
  auto& copies = block->current().copies;
  for (; copies.size() > groups_in_flight + 1; copies.pop_front()) {
    for (const Copy& copy : copies.front()) std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

void fault(std::source_location where, const char* what) {
  Thread& thread = block->current();
  thread.fault =
      concat(name(where), ": ", what, " (block ", blockIdx.x, ", thread ", threadIdx.x, ")");
  for (;;) thread.fiber.suspend();
}

}  // namespace dpcomm::simt
