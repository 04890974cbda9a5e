// Every kernel over small inputs that reach each of its paths, for the sanitizers: of GCC on the
// SIMT machine, and compute-sanitizer on a GPU. test_kernels.py holds the results; here it is
// enough to run.

#include <cstdio>
#include <string>
#include <vector>

#include "base/cuda.hpp"
#include "base/device_cuda.hpp"
#include "privacy/clip_cuda.hpp"
#include "privacy/noise_cuda.hpp"
#include "privacy/update_cuda.hpp"

namespace dpcomm {
namespace {

template <class T>
class OnDevice {
 public:
  explicit OnDevice(std::size_t count) : bytes_(count * sizeof(T)) {
    DPCOMM_CUDA_CHECK(cudaMalloc(&data_, bytes_));
  }
  OnDevice(std::size_t count, T value) : OnDevice(count) {
    const std::vector<T> host(count, value);
    DPCOMM_CUDA_CHECK(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice));
  }
  OnDevice(OnDevice&& other) : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  ~OnDevice() { static_cast<void>(cudaFree(data_)); }

  T* data() { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

void noise(Generator generator, std::size_t count, std::uint64_t offset) {
  OnDevice<float> data(count, 1.0f);
  add_noise(data.data(), count, offset, {.key = {}, .generator = generator, .step = 1, .std = 1.0},
            1.0f, nullptr);
}

void update_all(Generator generator, std::size_t count, std::uint64_t offset) {
  OnDevice<float> gradient(count, 1.0f), parameters(count, 1.0f), first(count, 0.0f),
      second(count, 0.0f);
  const NoiseSpec spec{.key = {}, .generator = generator, .step = 1, .std = 1.0};
  for (const Optimizer& optimizer :
       {Optimizer(Sgd{.lr = 0.1}), Optimizer(Sgd{.lr = 0.1, .momentum = 0.9}), Optimizer(Adam{})}) {
    update({gradient.data(), parameters.data(), {first.data(), second.data()}}, count, offset, spec,
           0.5f, optimizer, nullptr);
  }
}

void device(DType dtype, std::size_t count) {
  OnDevice<std::byte> a(count * size_of(dtype), std::byte{1}),
      b(count * size_of(dtype), std::byte{2});
  const void* parts[] = {a.data(), b.data(), a.data()};
  for (const RedOp op : {RedOp::kSum, RedOp::kMax, RedOp::kMin}) {
    combine(dtype, op, parts, b.data(), count, nullptr);
  }
  if (dtype > DType::kFloat16) return;
  multiply(dtype, a.data(), b.data(), count, 0.5, nullptr);
  divide(dtype, a.data(), count, 3, nullptr);
}

// Of an arbitrary but finite pattern; rows lie side by side.
void clip(DType dtype, std::size_t rows, std::vector<std::size_t> columns) {
  std::size_t all = 0;
  std::vector<OnDevice<std::uint16_t>> memory;
  std::vector<GradBlock> blocks;
  for (const std::size_t count : columns) {
    memory.emplace_back(rows * count * size_of(dtype) / 2, std::uint16_t{0x3c01});
    blocks.push_back({memory.back().data(), count, count});
    all += count;
  }
  const ClipPlan plan = clip_plan(blocks, rows, dtype);
  OnDevice<float> total(all);
  OnDevice<double> norms(rows);
  OnDevice<std::byte> workspace(plan.workspace_bytes);
  OnDevice<std::int64_t> nonfinite(1);
  clip_sum(plan, blocks, rows, dtype, 1.0, 0.0, total.data(), norms.data(), nullptr,
           nonfinite.data(), workspace.data(), nullptr);
  std::int64_t count = -1;
  DPCOMM_CUDA_CHECK(cudaMemcpy(&count, nonfinite.data(), sizeof count, cudaMemcpyDeviceToHost));
  std::printf("clip %zu x %zu %s: %u teams of %u, groups of %u rows, %lld not finite\n", rows, all,
              std::string(name_of(dtype)).c_str(), plan.teams, plan.members, plan.group_rows,
              static_cast<long long>(count));
}

}  // namespace
}  // namespace dpcomm

// `kernels gpu` takes sizes for a whole GPU, else for the SIMT machine's small device.
int main(int argc, char** argv) {
  using dpcomm::DType;
  const bool gpu = argc > 1 && std::string(argv[1]) == "gpu";
  for (const auto generator : {dpcomm::Generator::kChaCha20, dpcomm::Generator::kPhilox}) {
    dpcomm::noise(generator, 1, 511);
    dpcomm::noise(generator, 5000, 77);
    dpcomm::update_all(generator, 1, 511);
    dpcomm::update_all(generator, 5000, 77);
  }
  for (std::size_t dtype = 0; dtype < dpcomm::kDTypes; ++dtype) {
    dpcomm::device(static_cast<DType>(dtype), 3001);
  }
  for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    dpcomm::clip(dtype, 7, {33});
    dpcomm::clip(
        dtype, 9,
        gpu ? std::vector<std::size_t>{17001, 1, 3300} : std::vector<std::size_t>{1701, 1, 330});
    dpcomm::clip(dtype, 5, {gpu ? 500'001u : 4047u});
    dpcomm::clip(dtype, 3, {gpu ? 4'000'001u : 29'001u});
    dpcomm::clip(dtype, 2, {gpu ? 8'000'001u : 100'001u});
    dpcomm::clip(dtype, 3, {gpu ? 4'000'001u : 29'001u, 12});
  }
}
