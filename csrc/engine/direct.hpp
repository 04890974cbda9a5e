#pragma once

#include <cstddef>

#include "engine/execute.hpp"
#include "transport/shared_memory.hpp"

namespace dpcomm {

// The round-robin all-reduce where ranks see each other's memory: each reads its shard of all N
// buffers and writes the result to all N, in one pass and between two meetings. A line that is
// written has been read, so no store waits for memory to be fetched. Buffers that peers cannot see
// go window by window through staging memory that they can; a tiny buffer is posted whole, and
// every rank adds all of them up. Additions are in the order of ranks, so that all of these, and
// the rounds of messages, give the same bits.
void direct_all_reduce(SharedMemory& memory, int rank, int size, const void* data, void* out,
                       const Stamp& stamp, const Epilogue& epilogue);

}  // namespace dpcomm
