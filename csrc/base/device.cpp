#include "base/device.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>

#include "base/arithmetic.hpp"
#include "base/cache.hpp"
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

// What waits for more addends stays in the first-level cache.
constexpr std::size_t kPieceBytes = 8192;
constexpr std::size_t kFused = 4;  // streams that one loop reads

// One loop over some of the streams: sums[i] op parts[0][i] op …, or without sums where these are
// the first streams.
template <class T, class Op, bool kScaled>
struct Fusion {
  using W = typename Wide<T>::type;

  const T* const* parts;
  const double* scales;
  std::size_t begin;
  std::size_t length;

  template <std::size_t kStreams, class To>
  void run(const W* sums, std::span<To* const> outs, std::size_t to) const {
    sums ? loop<kStreams, true>(sums, outs, to) : loop<kStreams, false>(sums, outs, to);
  }

  // Each line goes to all results at once: more lines of other cores are on their way together than
  // where one result is made after the other. Results may be parts: a line is read, then written.
  template <std::size_t kStreams, bool kSums, class To>
  void loop(const W* sums, std::span<To* const> outs, std::size_t to) const {
    constexpr std::size_t kLine = kCacheLine / sizeof(To);
    const T* from[kStreams];
    W by[kStreams];
    for (std::size_t k = 0; k < kStreams; ++k) {
      from[k] = parts[k] + begin;
      by[k] = kScaled ? static_cast<W>(scales[k]) : W{1};
    }
    To* const first = outs[0] + to;
    const auto combined = [&](std::size_t i) -> To {
      W sum = load(from[0][i], by[0]);
      if constexpr (kSums) sum = Op::apply(sums[i], sum);
#pragma GCC unroll 4
      for (std::size_t k = 1; k < kStreams; ++k) sum = Op::apply(sum, load(from[k][i], by[k]));
      if constexpr (std::is_same_v<To, W>) {
        return sum;
      } else {
        return Wide<T>::store(sum);
      }
    };
    const auto write = [&](std::size_t i, std::size_t count) {
      To line[kLine];
      for (std::size_t j = 0; j < count; ++j) line[j] = combined(i + j);
      std::memcpy(first + i, line, count * sizeof(To));
      for (To* const out : outs.subspan(1)) std::memcpy(out + to + i, line, count * sizeof(To));
    };
    std::size_t i = 0;
    while (i < length && reinterpret_cast<std::uintptr_t>(first + i) % kCacheLine != 0)
      write(i++, 1);
    for (; i + kLine <= length; i += kLine) write(i, kLine);
    for (; i < length; ++i) write(i, 1);
  }

  static W load(T value, [[maybe_unused]] W scale) {
    if constexpr (kScaled) return Wide<T>::load(Wide<T>::store(scale * Wide<T>::load(value)));
    return Wide<T>::load(value);
  }
};

template <class T, class Op, bool kScaled>
DPCOMM_SIMD void combine_streams(std::span<const T* const> parts, const double* scales,
                                 std::span<T* const> outs, std::size_t count) {
  using W = typename Wide<T>::type;
  constexpr std::size_t kPiece = kPieceBytes / sizeof(W);
  alignas(64) W sums[kPiece];
  W* const partial[] = {sums};
  const std::size_t lead = reinterpret_cast<std::uintptr_t>(outs[0]) % kCacheLine / sizeof(T);
  std::size_t end = 0;
  for (std::size_t begin = 0; begin < count; begin = end) {
    end = parts.size() > kFused ? std::min(count, begin + kPiece - (begin == 0 ? lead : 0)) : count;
    Fusion<T, Op, kScaled> next{parts.data(), scales, begin, end - begin};
    std::size_t left = parts.size();
    const W* so_far = nullptr;
    for (; left > kFused; left -= kFused) {
      next.template run<kFused, W>(so_far, partial, 0);
      so_far = sums;
      next.parts += kFused;
      next.scales += kScaled ? kFused : 0;
    }
    switch (left) {
      case 1:
        next.template run<1>(so_far, outs, begin);
        break;
      case 2:
        next.template run<2>(so_far, outs, begin);
        break;
      case 3:
        next.template run<3>(so_far, outs, begin);
        break;
      default:
        next.template run<4>(so_far, outs, begin);
    }
  }
}

template <class T>
void combine_as(RedOp op, std::span<const void* const> parts, std::span<void* const> outs,
                std::size_t count, std::span<const double> scales) {
  const auto from = reinterpret_cast<const T* const*>(parts.data());
  const auto to = reinterpret_cast<T* const*>(outs.data());
  const auto run = [&]<class Op, bool kScaled>() {
    combine_streams<T, Op, kScaled>({from, parts.size()}, scales.data(), {to, outs.size()}, count);
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

// Division by a power of two, of those that a float holds the inverse of, is multiplication by its
// inverse, to the bit, and much faster.
template <class T>
void divide_as(void* data, std::size_t count, double divisor) {
  using W = typename Wide<T>::type;
  T* const elements = static_cast<T*>(data);
  int exponent = 0;
  if (std::frexp(divisor, &exponent) == 0.5) {
    return multiply_as(elements, elements, count, 1 / divisor);
  }
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
