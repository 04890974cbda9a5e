#pragma once

#include <cstddef>
#include <vector>

#include "engine/execute.hpp"
#include "transport/shared_memory.hpp"

namespace dpcomm {

// The round-robin all-reduce where ranks see each other's memory: each reads its shard of all N
// buffers and writes the result to all N, in one pass and between two meetings. A line that is
// written has been read, so no store waits for memory to be fetched. Buffers that peers cannot see
// go window by window through staging memory that they can; a tiny buffer is posted whole, and
// every rank adds all of them up. Additions are in the order of ranks, so that all of these, and
// the rounds of messages, give the same bits.
class DirectAllReduce {
 public:
  DirectAllReduce(SharedMemory& memory, int rank, int size);

  // `out` may equal `data`.
  void run(const void* data, void* out, const Stamp& stamp, const Epilogue& epilogue);

 private:
  void add_entries();
  void run_in_place();
  void run_staged();
  void reduce_slice(std::size_t begin, std::size_t count);
  void reduce(std::size_t begin, std::size_t count);
  void complete(void* done, std::size_t begin, std::size_t count);

  SharedMemory& memory_;
  int rank_;
  int size_;

  // Of the present call.
  const std::byte* data_ = nullptr;
  std::byte* out_ = nullptr;
  const Stamp* stamp_ = nullptr;
  const Epilogue* epilogue_ = nullptr;
  std::size_t width_ = 0;  // bytes of an element
  std::size_t bytes_ = 0;
  // What is reduced, of all ranks, and the element of the whole at which it begins.
  std::vector<std::byte*> inputs_;
  std::vector<std::byte*> outputs_;
  std::size_t origin_ = 0;
  std::vector<const void*> parts_;
  std::vector<void*> outs_;
};

}  // namespace dpcomm
