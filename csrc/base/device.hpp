#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "base/dtype.hpp"
#include "base/stream.hpp"

// What collectives do to memory besides moving it.

namespace dpcomm {

enum class RedOp : std::uint8_t { kSum, kMean, kMax, kMin };

std::string_view name_of(RedOp op);
RedOp redop_of(std::string_view name);  // UsageError for an unknown name

// out[i] = parts[0][i] op parts[1][i] op …, in this order, for every `out`. The 16-bit types are
// combined in float and rounded once; kMean adds, and divide() comes when all parts are in; a NaN
// wins in kMax and kMin. An `out` may be one of the parts, but not overlap one otherwise. With
// `scales`, one a part, what is added is each part as multiply() makes it.
void combine(DType dtype, RedOp op, std::span<const void* const> parts, std::span<void* const> outs,
             std::size_t count, std::span<const double> scales = {});

// out[i] = factor * data[i], for the floating-point types: the factor rounded to float (to double
// for kFloat64), the product rounded to the type. `out` may equal `data`; a factor of 1 copies.
void multiply(DType dtype, void* out, const void* data, std::size_t count, double factor);

// data[i] /= divisor, for the floating-point types.
void divide(DType dtype, void* data, std::size_t count, double divisor);

// Memory of one kind, and the functions above on it. What the host's is told is done when the call
// returns; a GPU's works in the order of a stream, and calls only enqueue.
class Device {
 public:
  virtual ~Device() = default;

  virtual void* allocate(std::size_t bytes) = 0;  // EnvironmentError when there is no more
  virtual void release(void* data) noexcept = 0;

  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;  // may be the same
  virtual void combine(DType dtype, RedOp op, std::span<const void* const> parts, void* out,
                       std::size_t count) = 0;
  virtual void multiply(DType dtype, void* out, const void* data, std::size_t count,
                        double factor) = 0;
  virtual void divide(DType dtype, void* data, std::size_t count, double divisor) = 0;

  // The stream that everything goes to from now on; what went to another is waited for.
  virtual void use(Stream) {}
  virtual Stream stream() const { return nullptr; }
  virtual void mark() {}  // done() asks for all until here
  virtual bool done() { return true; }

  // As much as may be staged and be in the cache still when it is added.
  virtual std::size_t cached_bytes() const = 0;
};

std::shared_ptr<Device> host_device();

// A device's memory that grows and is kept for the next call. Its content is arbitrary.
class Scratch {
 public:
  explicit Scratch(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~Scratch() { device_->release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::byte* at_least(std::size_t bytes);

 private:
  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace dpcomm
