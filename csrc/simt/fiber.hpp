#pragma once

#include <cstddef>
#include <span>

namespace dpcomm::simt {

// A function on a stack of the caller's, which runs until it suspends itself. To switch is a
// handful of pushes and pops (7 ns), where ucontext makes a system call each time.
//
// The address sanitizer is told of each stack. To the thread sanitizer each fiber is a thread of
// its own, and a switch orders nothing: only release() and acquire() do.
class Fiber {
 public:
  // `body` begins at the first resume(). A fiber that is destroyed in the middle unwinds nothing.
  Fiber(std::span<std::byte> stack, void (*body)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Until the body suspends itself or returns. Throws Error where it outgrew its stack.
  void resume();
  void suspend();  // back to where resume() was called

 private:
  static void enter(void* self);
  void leave(bool for_good);

  std::span<std::byte> stack_;
  void (*body_)(void*);
  void* argument_;
  void* stack_pointer_ = nullptr;
  void* caller_stack_pointer_ = nullptr;
  struct Sanitizers {
    void* fiber = nullptr;
    void* caller = nullptr;
    const void* caller_bottom = nullptr;
    std::size_t caller_bytes = 0;
  } sanitizers_;
};

// For the thread sanitizer: what came before a release of `place` came before what follows an
// acquire of it.
void release(void* place);
void acquire(void* place);

}  // namespace dpcomm::simt
