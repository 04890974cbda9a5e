#pragma once

#include <atomic>
#include <functional>

namespace dpcomm {

// Runs work(0) … work(threads - 1) at the same time, work(0) on the caller, and returns when all
// have ended. Each calling thread keeps helpers of its own between calls, so that ranks that are
// threads of one process do not wait for each other. `work` must not throw.
void parallel(int threads, const std::function<void(int)>& work);

// Where the threads of one parallel() meet, any number of times: what each wrote before it, all see
// after it.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads), missing_(threads) {}
  void wait();

 private:
  const int threads_;
  std::atomic<int> missing_;
  std::atomic<unsigned> meetings_{0};
};

}  // namespace dpcomm
