#pragma once

#include <atomic>
#include <cstdint>

namespace dpcomm {

// How a rank sleeps until a peer has something for it, across processes. The sleeper arms the bell,
// looks once more, then sleeps; a peer stores what it has (seq_cst), then rings. Either the sleeper
// sees the store or the peer sees that the bell is armed; a bell that nobody armed costs one load.
struct alignas(64) Bell {
  std::atomic<std::uint32_t> rung{0};
  std::atomic<std::uint32_t> armed{0};

  std::uint32_t arm() {
    const std::uint32_t seen = rung.load();
    armed.store(1);
    return seen;
  }
  void disarm() { armed.store(0, std::memory_order_relaxed); }
  // Returns when the bell has rung since arm(), after `seconds`, or on a signal.
  void sleep(std::uint32_t seen, double seconds);
  void ring() {
    if (armed.load()) wake();
  }

 private:
  void wake();
};

// Rests between two looks: spins where every rank has a core, then yields a few times, then says
// that it is time to sleep. Spinning while another rank wants the core loses a scheduler's tick.
class Patience {
 public:
  explicit Patience(bool spin) : spins_(spin ? kSpins : 0) {}
  void reset() { looks_ = 0; }
  bool rest();  // false: sleep instead

 private:
  static constexpr int kSpins = 2000;
  static constexpr int kEager = 64;   // do not pause: what comes at once is seen 5 to 8 ns sooner
  static constexpr int kYields = 20;  // each hands the core to the next rank that shares it
  int spins_;
  int looks_ = 0;
};

}  // namespace dpcomm
