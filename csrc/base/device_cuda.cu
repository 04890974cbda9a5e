#include <algorithm>

#include "base/arithmetic.hpp"
#include "base/cuda.hpp"
#include "base/device_cuda.hpp"

namespace dpcomm {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kTogether = 4;  // elements of a thread whose loads are under way together

struct Parts {
  const void* data[kMaxCudaParts];
  unsigned count;
};

// One after the other in the order of the parts, as on the CPU.
template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ Parts parts, T* out, std::size_t count) {
  using W = typename Wide<T>::type;
  const std::size_t first = std::size_t{blockIdx.x} * kThreads * kTogether + threadIdx.x;
  W sums[kTogether];
  const auto part = [&](unsigned p) { return static_cast<const T*>(parts.data[p]); };
#pragma unroll
  for (unsigned k = 0; k < kTogether; ++k) {
    const std::size_t i = first + k * kThreads;
    sums[k] = i < count ? Wide<T>::load(part(0)[i]) : W{};
  }
  for (unsigned p = 1; p < parts.count; ++p) {
#pragma unroll
    for (unsigned k = 0; k < kTogether; ++k) {
      const std::size_t i = first + k * kThreads;
      if (i < count) sums[k] = Op::apply(sums[k], Wide<T>::load(part(p)[i]));
    }
  }
#pragma unroll
  for (unsigned k = 0; k < kTogether; ++k) {
    const std::size_t i = first + k * kThreads;
    if (i < count) out[i] = Wide<T>::store(sums[k]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply_kernel(T* out, const T* data, std::size_t count, typename Wide<T>::type factor) {
  const std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) out[i] = Wide<T>::store(factor * Wide<T>::load(data[i]));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    divide_kernel(T* data, std::size_t count, typename Wide<T>::type divisor) {
  const std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) data[i] = Wide<T>::store(Wide<T>::load(data[i]) / divisor);
}

Grid grid_of(std::size_t count, unsigned each) {
  const std::size_t share = std::size_t{kThreads} * each;
  return {static_cast<unsigned>((count + share - 1) / share), kThreads};
}

template <class T>
void combine_as(RedOp op, const Parts& parts, void* out, std::size_t count, Stream stream) {
  const auto run = [&]<class Op>() {
    launch(grid_of(count, kTogether), stream, combine_kernel<T, Op>, parts, static_cast<T*>(out),
           count);
  };
  switch (op) {
    case RedOp::kSum:
    case RedOp::kMean:
      return run.template operator()<Add>();
    case RedOp::kMax:
      return run.template operator()<Max>();
    case RedOp::kMin:
      return run.template operator()<Min>();
  }
}

// Calls `body` with the type, for the floating-point ones.
template <class Body>
void as_float(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat64:
      return body.template operator()<double>();
    case DType::kFloat32:
      return body.template operator()<float>();
    case DType::kBFloat16:
      return body.template operator()<BFloat16>();
    case DType::kFloat16:
      return body.template operator()<Float16>();
    default:
      throw UsageError(concat("the mean or scaled sum of ", name_of(dtype),
                              " is not defined: convert it to a floating-point type"));
  }
}

}  // namespace

void combine(DType dtype, RedOp op, std::span<const void* const> parts, void* out,
             std::size_t count, Stream stream) {
  DPCOMM_CHECK(parts.size() <= kMaxCudaParts, UsageError, parts.size(),
               " parts of a sum on a GPU, the most is ", kMaxCudaParts, ": use algo='ring'");
  if (count == 0) return;
  Parts all = {.data = {}, .count = static_cast<unsigned>(parts.size())};
  std::copy(parts.begin(), parts.end(), all.data);
  switch (dtype) {
    case DType::kFloat64:
      return combine_as<double>(op, all, out, count, stream);
    case DType::kFloat32:
      return combine_as<float>(op, all, out, count, stream);
    case DType::kBFloat16:
      return combine_as<BFloat16>(op, all, out, count, stream);
    case DType::kFloat16:
      return combine_as<Float16>(op, all, out, count, stream);
    case DType::kInt64:
      return combine_as<std::int64_t>(op, all, out, count, stream);
    case DType::kInt32:
      return combine_as<std::int32_t>(op, all, out, count, stream);
    case DType::kUInt8:
      return combine_as<std::uint8_t>(op, all, out, count, stream);
  }
}

void multiply(DType dtype, void* out, const void* data, std::size_t count, double factor,
              Stream stream) {
  if (count == 0) return;
  as_float(dtype, [&]<class T>() {
    launch(grid_of(count, 1), stream, multiply_kernel<T>, static_cast<T*>(out),
           static_cast<const T*>(data), count, static_cast<typename Wide<T>::type>(factor));
  });
}

void divide(DType dtype, void* data, std::size_t count, double divisor, Stream stream) {
  if (count == 0) return;
  as_float(dtype, [&]<class T>() {
    launch(grid_of(count, 1), stream, divide_kernel<T>, static_cast<T*>(data), count,
           static_cast<typename Wide<T>::type>(divisor));
  });
}

}  // namespace dpcomm
