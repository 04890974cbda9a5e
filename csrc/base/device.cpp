#include "base/device.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <type_traits>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

// One source, compiled for several instruction sets and chosen by the loader. Sanitizers instrument
// the chooser before they are ready, and clang takes no `flatten` beside it: they get the plain
// one.
#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define DPCOMM_SIMD \
  [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), gnu::flatten]]
#else
#define DPCOMM_SIMD
#endif

namespace dpcomm {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"sum", "mean", "max", "min"};

// What waits for more addends, or to be copied, stays in the first-level cache.
constexpr std::size_t kPieceBytes = 8192;
constexpr std::size_t kFused = 4;  // streams that one loop reads

// One loop over some of the streams: to[i] = sums[i] op parts[0][i] op …, or without sums where
// these are the first streams.
template <class T, class Op, bool kScaled>
struct Fusion {
  using W = typename Wide<T>::type;

  const T* const* parts;
  const double* scales;
  std::size_t begin;
  std::size_t length;

  template <std::size_t kStreams, class To>
  void run(const W* sums, To* to) const {
    sums ? loop<kStreams, true>(sums, to) : loop<kStreams, false>(sums, to);
  }

  template <std::size_t kStreams, bool kSums, class To>
  void loop(const W* sums, To* to) const {
    const T* from[kStreams];
    W by[kStreams];
    for (std::size_t k = 0; k < kStreams; ++k) {
      from[k] = parts[k] + begin;
      by[k] = kScaled ? static_cast<W>(scales[k]) : W{1};
    }
#pragma GCC ivdep  // `to` may be a part: each element is read before it is written
    for (std::size_t i = 0; i < length; ++i) {
      W sum = load(from[0][i], by[0]);
      if constexpr (kSums) sum = Op::apply(sums[i], sum);
#pragma GCC unroll 4
      for (std::size_t k = 1; k < kStreams; ++k) sum = Op::apply(sum, load(from[k][i], by[k]));
      if constexpr (std::is_same_v<To, W>) {
        to[i] = sum;
      } else {
        to[i] = Wide<T>::store(sum);
      }
    }
  }

  static W load(T value, [[maybe_unused]] W scale) {
    if constexpr (kScaled) return Wide<T>::load(Wide<T>::store(scale * Wide<T>::load(value)));
    return Wide<T>::load(value);
  }
};

// Each line goes to several places at once: more lines of other cores are on their way together
// than where one copy is made after the other.
template <std::size_t kCopies>
void copy_lines(const std::byte* from, std::byte* const* outs, std::size_t begin,
                std::size_t length) {
  constexpr std::size_t kLine = 64;
  std::byte* to[kCopies];
  for (std::size_t copy = 0; copy < kCopies; ++copy) to[copy] = outs[copy] + begin;
  std::size_t at = 0;
  for (; at + kLine <= length; at += kLine) {
    std::byte line[kLine];
    std::memcpy(line, from + at, kLine);
#pragma GCC unroll 4
    for (std::size_t copy = 0; copy < kCopies; ++copy) std::memcpy(to[copy] + at, line, kLine);
  }
  for (std::byte* out : to) std::memcpy(out + at, from + at, length - at);
}

void copy_to_all(const void* data, void* const* results, std::size_t copies, std::size_t begin,
                 std::size_t length) {
  const auto from = static_cast<const std::byte*>(data);
  auto outs = reinterpret_cast<std::byte* const*>(results);
  for (; copies > 4; copies -= 4, outs += 4) copy_lines<4>(from, outs, begin, length);
  switch (copies) {
    case 1:
      return copy_lines<1>(from, outs, begin, length);
    case 2:
      return copy_lines<2>(from, outs, begin, length);
    case 3:
      return copy_lines<3>(from, outs, begin, length);
    case 4:
      return copy_lines<4>(from, outs, begin, length);
    default:
      return;  // none
  }
}

// The first result is written in passing, the others are copied from the cache.
template <class T, class Op, bool kScaled>
DPCOMM_SIMD void combine_streams(const T* const* parts, std::size_t streams, const double* scales,
                                 T* const* outs, std::size_t copies, std::size_t count) {
  using W = typename Wide<T>::type;
  constexpr std::size_t kPiece = kPieceBytes / sizeof(W);
  alignas(64) W sums[kPiece];
  for (std::size_t begin = 0; begin < count; begin += kPiece) {
    Fusion<T, Op, kScaled> next{parts, scales, begin, std::min(kPiece, count - begin)};
    std::size_t left = streams;
    const W* so_far = nullptr;
    for (; left > kFused; left -= kFused) {
      next.template run<kFused>(so_far, sums);
      so_far = sums;
      next.parts += kFused;
      next.scales += kScaled ? kFused : 0;
    }
    T* const to = outs[0] + begin;
    switch (left) {
      case 1:
        next.template run<1>(so_far, to);
        break;
      case 2:
        next.template run<2>(so_far, to);
        break;
      case 3:
        next.template run<3>(so_far, to);
        break;
      default:
        next.template run<4>(so_far, to);
    }
    copy_to_all(to, reinterpret_cast<void* const*>(outs + 1), copies - 1, begin * sizeof(T),
                next.length * sizeof(T));
  }
}

template <class T>
void combine_as(RedOp op, std::span<const void* const> parts, std::span<void* const> outs,
                std::size_t count, std::span<const double> scales) {
  const auto from = reinterpret_cast<const T* const*>(parts.data());
  const auto to = reinterpret_cast<T* const*>(outs.data());
  const auto run = [&]<class Op, bool kScaled>() {
    combine_streams<T, Op, kScaled>(from, parts.size(), scales.data(), to, outs.size(), count);
  };
  switch (op) {
    case RedOp::kSum:
    case RedOp::kMean:
      if constexpr (std::is_floating_point_v<typename Wide<T>::type>) {
        if (!scales.empty()) return run.template operator()<Add, true>();
      }
      return run.template operator()<Add, false>();
    case RedOp::kMax:
      return run.template operator()<Max, false>();
    case RedOp::kMin:
      return run.template operator()<Min, false>();
  }
}

template <class T>
DPCOMM_SIMD void multiply_as(T* out, const T* data, std::size_t count, double factor) {
  const auto by = static_cast<typename Wide<T>::type>(factor);
  for (std::size_t i = 0; i < count; ++i) out[i] = Wide<T>::store(by * Wide<T>::load(data[i]));
}

template <class T>
void divide_as(void* data, std::size_t count, double divisor) {
  using W = typename Wide<T>::type;
  T* const elements = static_cast<T*>(data);
  const W by = static_cast<W>(divisor);
  for (std::size_t i = 0; i < count; ++i) {
    elements[i] = Wide<T>::store(Wide<T>::load(elements[i]) / by);
  }
}

class HostDevice final : public Device {
 public:
  void* allocate(std::size_t bytes) override { return ::operator new(bytes, kAlignment); }
  void release(void* data) noexcept override { ::operator delete(data, kAlignment); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (to != from && bytes > 0) std::memcpy(to, from, bytes);
  }
  void combine(DType dtype, RedOp op, std::span<const void* const> parts, void* out,
               std::size_t count) override {
    dpcomm::combine(dtype, op, parts, {&out, 1}, count);
  }
  void multiply(DType dtype, void* out, const void* data, std::size_t count,
                double factor) override {
    dpcomm::multiply(dtype, out, data, count, factor);
  }
  void divide(DType dtype, void* data, std::size_t count, double divisor) override {
    dpcomm::divide(dtype, data, count, divisor);
  }
  std::size_t cached_bytes() const override { return std::size_t{512} << 10; }

 private:
  static constexpr std::align_val_t kAlignment{64};
};

}  // namespace

std::shared_ptr<Device> host_device() {
  static const auto device = std::make_shared<HostDevice>();
  return device;
}

std::byte* Scratch::at_least(std::size_t bytes) {
  if (bytes > bytes_) {
    device_->release(data_);
    data_ = nullptr;
    bytes_ = 0;
    data_ = device_->allocate(bytes);
    bytes_ = bytes;
  }
  return static_cast<std::byte*>(data_);
}

std::string_view name_of(RedOp op) { return kNames[static_cast<std::size_t>(op)]; }

RedOp redop_of(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  DPCOMM_CHECK(found != kNames.end(), UsageError, "op '", name,
               "' is unknown: use sum, mean, max or min");
  return static_cast<RedOp>(found - kNames.begin());
}

void combine(DType dtype, RedOp op, std::span<const void* const> parts, std::span<void* const> outs,
             std::size_t count, std::span<const double> scales) {
  switch (dtype) {
    case DType::kFloat64:
      return combine_as<double>(op, parts, outs, count, scales);
    case DType::kFloat32:
      return combine_as<float>(op, parts, outs, count, scales);
    case DType::kBFloat16:
      return combine_as<BFloat16>(op, parts, outs, count, scales);
    case DType::kFloat16:
      return combine_as<Float16>(op, parts, outs, count, scales);
    case DType::kInt64:
      return combine_as<std::int64_t>(op, parts, outs, count, scales);
    case DType::kInt32:
      return combine_as<std::int32_t>(op, parts, outs, count, scales);
    case DType::kUInt8:
      return combine_as<std::uint8_t>(op, parts, outs, count, scales);
  }
}

void multiply(DType dtype, void* out, const void* data, std::size_t count, double factor) {
  if (factor == 1) {
    if (out != data && count > 0) std::memcpy(out, data, count * size_of(dtype));
    return;
  }
  const auto run = [&]<class T>() {
    multiply_as(static_cast<T*>(out), static_cast<const T*>(data), count, factor);
  };
  switch (dtype) {
    case DType::kFloat64:
      return run.template operator()<double>();
    case DType::kFloat32:
      return run.template operator()<float>();
    case DType::kBFloat16:
      return run.template operator()<BFloat16>();
    case DType::kFloat16:
      return run.template operator()<Float16>();
    default:
      throw UsageError(concat("a scaled sum of ", name_of(dtype), " is not defined: convert it to ",
                              "a floating-point type"));
  }
}

void divide(DType dtype, void* data, std::size_t count, double divisor) {
  switch (dtype) {
    case DType::kFloat64:
      return divide_as<double>(data, count, divisor);
    case DType::kFloat32:
      return divide_as<float>(data, count, divisor);
    case DType::kBFloat16:
      return divide_as<BFloat16>(data, count, divisor);
    case DType::kFloat16:
      return divide_as<Float16>(data, count, divisor);
    default:
      throw UsageError(concat("the mean of ", name_of(dtype), " is not defined: use op='sum'"));
  }
}

}  // namespace dpcomm
