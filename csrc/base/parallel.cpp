#include "base/parallel.hpp"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/openmp.hpp"

namespace dpcomm {
namespace {

using Work = std::function<void(int)>;

// Spins for some microseconds, the usual time between two calls of one kernel, then sleeps.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < 2000; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
  }
  value.wait(old, std::memory_order_acquire);
}

class Helpers {
 public:
  explicit Helpers(int count) {
    for (int id = 1; id <= count; ++id) threads_.emplace_back([this, id] { serve(id); });
  }

  ~Helpers() {
    start(nullptr, 0);
    for (std::thread& thread : threads_) thread.join();
  }

  int count() const { return static_cast<int>(threads_.size()); }

  void run(int parts, const Work& work) {
    start(&work, parts);
    work(0);
    for (int left = running_.load(std::memory_order_acquire); left != 0; left = running_.load()) {
      wait_while(running_, left);
    }
  }

 private:
  void start(const Work* work, int parts) {
    work_ = work;
    parts_ = parts;
    running_.store(count());
    calls_.fetch_add(1, std::memory_order_release);
    calls_.notify_all();
  }

  void serve(int id) {
    for (std::uint32_t seen = 0;; ++seen) {
      wait_while(calls_, seen);
      if (work_ == nullptr) return;
      if (id < parts_) (*work_)(id);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
  }

  const Work* work_ = nullptr;
  int parts_ = 0;
  std::atomic<int> running_{0};
  std::atomic<std::uint32_t> calls_{0};
  std::vector<std::thread> threads_;
};

struct Owned {
  std::unique_ptr<Helpers> helpers;
  pid_t process = 0;
};

Helpers& helpers_for(int threads) {
  thread_local Owned mine;
  if (mine.process != ::getpid()) {
    // After a fork the helpers are gone and cannot be joined: forget them.
    static_cast<void>(mine.helpers.release());
    mine.process = ::getpid();
  }
  if (!mine.helpers || mine.helpers->count() < threads - 1) {
    mine.helpers = std::make_unique<Helpers>(threads - 1);
  }
  return *mine.helpers;
}

}  // namespace

void Barrier::wait() {
  const unsigned meeting = meetings_.load(std::memory_order_relaxed);
  if (missing_.fetch_sub(1, std::memory_order_acq_rel) > 1) return wait_while(meetings_, meeting);
  missing_.store(threads_, std::memory_order_relaxed);
  meetings_.fetch_add(1, std::memory_order_release);
  meetings_.notify_all();
}

void parallel(int threads, const Work& work) {
  if (threads <= 1) {
    work(0);
  } else if (!run_on_openmp(threads, work)) {
    helpers_for(threads).run(threads, work);
  }
}

}  // namespace dpcomm
