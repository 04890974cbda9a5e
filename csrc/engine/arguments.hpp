#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string_view>

#include "base/device.hpp"
#include "base/dtype.hpp"
#include "schedule/schedule.hpp"

namespace dpcomm {

// Called once for every element on the ranks that complete it, before it is sent on: the completed
// elements, where they begin in the whole buffer, and their number. Ranks that complete the same
// elements must change them alike. A rank completes the same elements in every call on the same
// buffers, so that an epilogue may keep what belongs to them.
struct Epilogue {
  using Work = std::function<void(void* data, std::size_t offset, std::size_t count)>;

  // In six letters at most. It is in the header of messages, so that a sum to which noise comes
  // never meets one to which none does.
  std::string_view purpose;
  Work work;

  explicit operator bool() const { return work != nullptr; }
  void operator()(void* data, std::size_t offset, std::size_t count) const {
    work(data, offset, count);
  }
};

// What a collective is called with; each one says which members it reads.
struct Arguments {
  const void* data = nullptr;
  void* out = nullptr;  // may equal data
  std::size_t count = 0;
  DType dtype = DType::kFloat32;
  RedOp redop = RedOp::kSum;
  int root = 0;
  std::optional<Algorithm> algorithm = {};  // none: ours to choose
  // A sum is of scale * data, each rank with a scale of its own; see multiply() for the rounding.
  double scale = 1;
  Epilogue epilogue = {};
  // Given: all memory is the GPU's that open_gpu() named, and this is the stream that the
  // collective takes its turn in. An epilogue is called on the host and enqueues there.
  std::optional<Stream> stream = {};
};

}  // namespace dpcomm
