#include "simt/fiber.hpp"

#include <cstdint>
#include <cstring>

#include "base/error.hpp"

// Saves the registers that a call preserves, leaves the stack pointer in *save, and goes on where
// the stack `load` left off. A new stack begins in `enter`, with a function and its argument
// in two of those registers.
extern "C" void dpcomm_simt_switch(void** save, void* load);
extern "C" void dpcomm_simt_enter();

#if defined(__x86_64__)
asm(R"(
  .text
  .globl dpcomm_simt_switch
  .hidden dpcomm_simt_switch
  .type dpcomm_simt_switch, @function
dpcomm_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .globl dpcomm_simt_enter
  .hidden dpcomm_simt_enter
  .type dpcomm_simt_enter, @function
dpcomm_simt_enter:
  movq %r13, %rdi
  callq *%r12
  ud2
)");
// From the stack pointer up: r15, r14, r13, r12, rbx, rbp, the return address.
constexpr int kFrameWords = 7, kArgument = 2, kFunction = 3, kReturn = 6;
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl dpcomm_simt_switch
  .hidden dpcomm_simt_switch
  .type dpcomm_simt_switch, %function
dpcomm_simt_switch:
  stp x19, x20, [sp, #-160]!
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
  .globl dpcomm_simt_enter
  .hidden dpcomm_simt_enter
  .type dpcomm_simt_enter, %function
dpcomm_simt_enter:
  mov x0, x19
  blr x20
  brk #0
)");
constexpr int kFrameWords = 20, kArgument = 0, kFunction = 1, kReturn = 11;
#else
#error "simt: no stack switch for this processor; add one beside x86-64 and aarch64"
#endif

// The sanitizers' interface; null where a program runs without them.
extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t bytes);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* bytes);
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* place);
[[gnu::weak]] void __tsan_release(void* place);
}

namespace dpcomm::simt {
namespace {

constexpr unsigned kOrdersNothing = 1;  // __tsan_switch_to_fiber_no_sync

constexpr std::uint64_t kCanary = 0xa5a5a5a5a5a5a5a5u;  // at the far end of each stack

}  // namespace

Fiber::Fiber(std::span<std::byte> stack, void (*body)(void*), void* argument)
    : stack_(stack), body_(body), argument_(argument) {
  std::memcpy(stack.data(), &kCanary, sizeof kCanary);
  auto* frame = reinterpret_cast<void**>(stack.data() + stack.size()) - kFrameWords;
  frame[kFunction] = reinterpret_cast<void*>(&Fiber::enter);
  frame[kArgument] = this;
  frame[kReturn] = reinterpret_cast<void*>(dpcomm_simt_enter);
  stack_pointer_ = frame;
  if (__tsan_create_fiber != nullptr) sanitizers_.fiber = __tsan_create_fiber(0);
}

Fiber::~Fiber() {
  if (sanitizers_.fiber != nullptr) __tsan_destroy_fiber(sanitizers_.fiber);
}

void Fiber::enter(void* self) {
  auto& fiber = *static_cast<Fiber*>(self);
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(nullptr, &fiber.sanitizers_.caller_bottom,
                                    &fiber.sanitizers_.caller_bytes);
  }
  fiber.body_(fiber.argument_);
  fiber.leave(true);
}

void Fiber::resume() {
  void* save = nullptr;
  if (__tsan_switch_to_fiber != nullptr) {
    sanitizers_.caller = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(sanitizers_.fiber, kOrdersNothing);
  }
  if (__sanitizer_start_switch_fiber != nullptr) {
    __sanitizer_start_switch_fiber(&save, stack_.data(), stack_.size());
  }
  dpcomm_simt_switch(&caller_stack_pointer_, stack_pointer_);
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(save, nullptr, nullptr);
  }
  DPCOMM_CHECK(std::memcmp(stack_.data(), &kCanary, sizeof kCanary) == 0, Error,
               "simt: a CUDA thread outgrew its stack of ", stack_.size(),
               " bytes: keep less in local arrays");
}

void Fiber::suspend() { leave(false); }

void Fiber::leave(bool for_good) {
  void* save = nullptr;
  if (__tsan_switch_to_fiber != nullptr) {
    __tsan_switch_to_fiber(sanitizers_.caller, kOrdersNothing);
  }
  if (__sanitizer_start_switch_fiber != nullptr) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &save, sanitizers_.caller_bottom,
                                   sanitizers_.caller_bytes);
  }
  dpcomm_simt_switch(&stack_pointer_, caller_stack_pointer_);
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(save, &sanitizers_.caller_bottom, &sanitizers_.caller_bytes);
  }
}

void release(void* place) {
  if (__tsan_release != nullptr) __tsan_release(place);
}

void acquire(void* place) {
  if (__tsan_acquire != nullptr) __tsan_acquire(place);
}

}  // namespace dpcomm::simt
