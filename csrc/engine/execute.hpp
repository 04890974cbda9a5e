#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "schedule/schedule.hpp"
#include "transport/transport.hpp"

namespace dpcomm {

// Called once for every element on the ranks that complete it, before it is sent on: the completed
// elements, where they begin in the whole buffer, and their number. Ranks that complete the same
// elements must change them alike. A rank completes the same elements in every call on the same
// buffers, so that an epilogue may keep what belongs to them.
using Epilogue = std::function<void(void* data, std::size_t offset, std::size_t count)>;

// The buffer that a schedule runs over.
struct Buffer {
  void* data;
  std::size_t count;  // elements
  // Blocks are cut at multiples of this many elements: 16, so that cache lines and blocks of noise
  // are whole, or 1, for shards of equal size.
  std::size_t grain;
};

// Runs a schedule. A long message goes in segments; what is to be added is staged and added in the
// order of ranks, what is to be copied lands in its place. `staging` is kept for the next call.
void execute(const Schedule& schedule, Transport& transport, const Buffer& buffer, Stamp stamp,
             const Epilogue& epilogue, std::vector<std::byte>& staging);

}  // namespace dpcomm
