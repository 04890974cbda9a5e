#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

#include "base/error.hpp"

// CUDA's threads on a CPU, for tests: a block is a thread of the operating system, its CUDA threads
// are fibers on it. What the hardware leaves undefined is a fault that names file and line.
namespace dpcomm::simt {

// A kernel did what would hang or corrupt on a GPU.
class Fault : public Error {
 public:
  using Error::Error;
};

inline constexpr unsigned kWarpSize = 32;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Shape {
  unsigned blocks;
  unsigned threads;          // of each block, a multiple of the warp size
  std::size_t shared_bytes;  // dynamic shared memory of each block
  bool cooperative;          // all blocks at the same time, so that they may wait for each other
};

// In which order the threads of a block run from one barrier to the next. A kernel whose result
// depends on it lacks a barrier.
enum class Order { kForward, kReverse };
void set_order(Order order);

// What launchers learn when they ask for the device's size, and how long a thread may wait.
struct Device {
  int multiprocessors = 4;
  int shared_bytes = 48 << 10;  // the most that a block may have
  double patience = 10;         // seconds in a loop for a value that does not come
};
Device& device();

// Runs the kernel to its end. Throws the first fault of any block.
void run(const Shape& shape, const std::function<void()>& kernel);

// What a CUDA thread may ask of its machine.

void* dynamic_shared();
void block_barrier(std::source_location where);
void warp_barrier(std::source_location where);

// Each lane gives a word and sees those of all lanes of its warp. Orders no memory.
const std::array<std::uint64_t, kWarpSize>& warp_exchange(std::uint64_t word,
                                                          std::source_location where);
unsigned lane();

// Lets the others run before a look at a value that they may change.
void yield(std::source_location where);

// Copies that run in the background: they arrive, at the earliest and at the latest, when the
// thread waits for the group they were committed in.
void copy_async(void* to, const void* from, std::size_t bytes);
void commit_copies();
void wait_for_copies(std::size_t groups_in_flight);

[[noreturn]] void fault(std::source_location where, const char* what);

}  // namespace dpcomm::simt

// CUDA's own names.
extern thread_local dpcomm::simt::Index threadIdx, blockIdx, blockDim, gridDim;
