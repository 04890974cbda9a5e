#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace dpcomm::simt {

// A block's memory, made so that a kernel's mistakes with it show. All shared memory starts as
// bytes of ones: four or eight of them are a NaN, and no likely index.

// Dynamic shared memory, followed by a canary that the address sanitizer guards.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes);
  std::byte* data() { return memory_.get(); }
  bool intact() const;  // nothing was written past the end

 private:
  std::size_t bytes_;
  std::unique_ptr<std::byte[]> memory_;
};

// Fills the calling thread's copy of every thread_local of this library: among them all
// `__shared__` variables of the kernels that are linked with the machine.
void poison_static_shared();

// Fresh memory for the stacks of a block; the sanitizers forget what stood there before.
class Stacks {
 public:
  explicit Stacks(unsigned count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  std::span<std::byte> operator[](unsigned i) const;

 private:
  std::size_t bytes_;
  std::byte* memory_;
};

}  // namespace dpcomm::simt
