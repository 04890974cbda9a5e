#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace dpcomm {

// Hands out whole pages of a range of memory, first fit, less `lead` bytes of the first. What is
// given back goes back to the system, so that it is zero again when it is next handed out. A forked
// copy of the process gives nothing back: it shares the memory, not its owner's say.
class Arena {
 public:
  Arena(std::byte* base, std::size_t bytes, std::size_t lead);
  void* allocate(std::size_t bytes);  // nullptr when nothing that long is free
  void release(void* data) noexcept;
  bool holds(const void* data, std::size_t bytes) const;

 private:
  std::byte* base_;
  std::size_t bytes_;
  std::size_t lead_;
  int process_;
  std::mutex mutex_;
  std::map<std::size_t, std::size_t> free_;  // offset -> length, never touching each other
  std::map<std::size_t, std::size_t> used_;
};

}  // namespace dpcomm
