#pragma once

#include <cstddef>

#include "engine/arguments.hpp"
#include "schedule/schedule.hpp"
#include "transport/transport.hpp"

namespace dpcomm {

// Elements; what is cut at multiples of it has whole cache lines and whole blocks of noise.
inline constexpr std::size_t kGrain = 16;

// The buffer that a schedule runs over.
struct Buffer {
  void* data;
  std::size_t count;  // elements
  // Blocks are cut at multiples of this many elements: kGrain, or 1, for shards of equal size.
  std::size_t grain;
};

// Runs a schedule. A long message goes in segments; what is to be added is staged and added in the
// order of ranks, what is to be copied lands in its place. `staging` is of the transport's device,
// and so is the buffer.
void execute(const Schedule& schedule, Transport& transport, const Buffer& buffer, Stamp stamp,
             const Epilogue& epilogue, Scratch& staging);

}  // namespace dpcomm
