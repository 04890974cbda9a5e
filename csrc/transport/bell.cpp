#include "transport/bell.hpp"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace dpcomm {

void Bell::sleep(std::uint32_t seen, double seconds) {
  timespec limit{};
  limit.tv_sec = static_cast<time_t>(seconds);
  limit.tv_nsec = static_cast<long>((seconds - static_cast<double>(limit.tv_sec)) * 1e9);
  syscall(SYS_futex, &rung, FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void Bell::wake() {
  rung.fetch_add(1);
  syscall(SYS_futex, &rung, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

bool Patience::rest() {
  ++looks_;
  if (looks_ <= spins_) {
    if (looks_ > kEager) cpu_pause();
    return true;
  }
  if (looks_ > spins_ + kYields) return false;
  sched_yield();
  return true;
}

}  // namespace dpcomm
