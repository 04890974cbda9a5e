#pragma once

#include <atomic>
#include <chrono>
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

// A moment in which a core that waits leaves its pipeline and the caches alone.
inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

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

// How long ranks that come together wait before they look at each other's lines. Who looks at a
// line that its owner is about to write takes it away, and the owner must fetch it back before it
// can be read: three transfers where one would do. The moment that avoids it depends on how far the
// cores are from each other, which changes where a virtual machine's cores move, so every so often
// a wait is timed.
class Tact {
 public:
  void begin(std::uint64_t turn) {  // the same on all ranks
    trial_ = turn % kTurns == 0;
    if (trial_) begun_ = Clock::now();
  }
  void hold_back() const {
    cpu_pause();
    if (far()) cpu_pause();
  }
  void end() {
    if (trial_) far_ = Clock::now() - begun_ > kNear;
  }
  // Where it also pays to have one's own line at hand before it is written.
  bool far() const { return far_ && !trial_; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::uint64_t kTurns = 64;
  static constexpr std::chrono::nanoseconds kNear{120};  // 40 to 100 on one die, 140 to 500 on two

  bool trial_ = false;
  bool far_ = false;
  Clock::time_point begun_;
};

}  // namespace dpcomm
