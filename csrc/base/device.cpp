#include "base/device.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.hpp"

// One source, compiled for several instruction sets and chosen by the loader. Sanitizers instrument
// the chooser before they are ready, so they get the plain one.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define DPCOMM_SIMD \
  [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), gnu::flatten]]
#else
#define DPCOMM_SIMD
#endif

namespace dpcomm {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"sum", "mean", "max", "min"};

// What the elements of a storage type are combined in.
template <class T>
struct Wide {
  using type = T;
  static T load(T value) { return value; }
  static T store(T value) { return value; }
};
template <>
struct Wide<BFloat16> {
  using type = float;
  static float load(BFloat16 value) { return to_float(value); }
  static BFloat16 store(float value) { return to_bfloat16(value); }
};
template <>
struct Wide<Float16> {
  using type = float;
  static float load(Float16 value) { return to_float(value); }
  static Float16 store(float value) { return to_float16(value); }
};

struct Add {
  template <class W>
  static W apply(W a, W b) {
    return static_cast<W>(a + b);
  }
};
struct Max {
  template <class W>
  static W apply(W a, W b) {
    return a > b || a != a ? a : b;
  }
};
struct Min {
  template <class W>
  static W apply(W a, W b) {
    return a < b || a != a ? a : b;
  }
};

// The sums of a piece stay in the first-level cache while the streams pass by.
constexpr std::size_t kPiece = 1024;

template <class T, class Op>
DPCOMM_SIMD void combine_streams(const T* const* parts, std::size_t streams, T* const* outs,
                                 std::size_t copies, std::size_t count) {
  typename Wide<T>::type sums[kPiece];
  for (std::size_t begin = 0; begin < count; begin += kPiece) {
    const std::size_t length = std::min(kPiece, count - begin);
    for (std::size_t i = 0; i < length; ++i) sums[i] = Wide<T>::load(parts[0][begin + i]);
    for (std::size_t stream = 1; stream < streams; ++stream) {
      const T* part = parts[stream] + begin;
      for (std::size_t i = 0; i < length; ++i) {
        sums[i] = Op::apply(sums[i], Wide<T>::load(part[i]));
      }
    }
    for (std::size_t copy = 0; copy < copies; ++copy) {
      T* out = outs[copy] + begin;
      for (std::size_t i = 0; i < length; ++i) out[i] = Wide<T>::store(sums[i]);
    }
  }
}

template <class T>
void combine_as(RedOp op, std::span<const void* const> parts, std::span<void* const> outs,
                std::size_t count) {
  const auto from = reinterpret_cast<const T* const*>(parts.data());
  const auto to = reinterpret_cast<T* const*>(outs.data());
  switch (op) {
    case RedOp::kSum:
    case RedOp::kMean:
      return combine_streams<T, Add>(from, parts.size(), to, outs.size(), count);
    case RedOp::kMax:
      return combine_streams<T, Max>(from, parts.size(), to, outs.size(), count);
    case RedOp::kMin:
      return combine_streams<T, Min>(from, parts.size(), to, outs.size(), count);
  }
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

}  // namespace

std::string_view name_of(RedOp op) { return kNames[static_cast<std::size_t>(op)]; }

RedOp redop_of(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  DPCOMM_CHECK(found != kNames.end(), UsageError, "op '", name,
               "' is unknown: use sum, mean, max or min");
  return static_cast<RedOp>(found - kNames.begin());
}

void combine(DType dtype, RedOp op, std::span<const void* const> parts, std::span<void* const> outs,
             std::size_t count) {
  switch (dtype) {
    case DType::kFloat64:
      return combine_as<double>(op, parts, outs, count);
    case DType::kFloat32:
      return combine_as<float>(op, parts, outs, count);
    case DType::kBFloat16:
      return combine_as<BFloat16>(op, parts, outs, count);
    case DType::kFloat16:
      return combine_as<Float16>(op, parts, outs, count);
    case DType::kInt64:
      return combine_as<std::int64_t>(op, parts, outs, count);
    case DType::kInt32:
      return combine_as<std::int32_t>(op, parts, outs, count);
    case DType::kUInt8:
      return combine_as<std::uint8_t>(op, parts, outs, count);
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
