#include "base/gpu.hpp"

#include "base/cuda.hpp"
#include "base/device_cuda.hpp"

namespace dpcomm {
namespace {

class Gpu final : public Device {
 public:
  explicit Gpu(int index) : index_(index) {
    const DeviceGuard guard(index_);
    DPCOMM_CUDA_CHECK(cudaEventCreateWithFlags(&marked_, cudaEventDisableTiming));
  }
  ~Gpu() override { static_cast<void>(cudaEventDestroy(marked_)); }

  void* allocate(std::size_t bytes) override {
    const DeviceGuard guard(index_);
    void* data = nullptr;
    DPCOMM_CUDA_CHECK(cudaMalloc(&data, bytes));
    return data;
  }
  void release(void* data) noexcept override { static_cast<void>(cudaFree(data)); }

  void copy(void* to, const void* from, std::size_t bytes) override {
    if (to == from || bytes == 0) return;
    const DeviceGuard guard(index_);
    DPCOMM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  }
  void combine(DType dtype, RedOp op, std::span<const void* const> parts, void* out,
               std::size_t count) override {
    const DeviceGuard guard(index_);
    dpcomm::combine(dtype, op, parts, out, count, stream_);
  }
  void multiply(DType dtype, void* out, const void* data, std::size_t count,
                double factor) override {
    if (factor == 1) return copy(out, data, count * size_of(dtype));
    const DeviceGuard guard(index_);
    dpcomm::multiply(dtype, out, data, count, factor, stream_);
  }
  void divide(DType dtype, void* data, std::size_t count, double divisor) override {
    const DeviceGuard guard(index_);
    dpcomm::divide(dtype, data, count, divisor, stream_);
  }

  void use(Stream stream) override {
    const DeviceGuard guard(index_);
    if (stream != stream_) DPCOMM_CUDA_CHECK(cudaStreamSynchronize(stream_));
    stream_ = stream;
  }
  Stream stream() const override { return stream_; }
  void mark() override {
    const DeviceGuard guard(index_);
    DPCOMM_CUDA_CHECK(cudaEventRecord(marked_, stream_));
  }
  bool done() override {
    const cudaError_t status = cudaEventQuery(marked_);
    if (status == cudaErrorNotReady) return false;
    DPCOMM_CUDA_CHECK(status);
    return true;
  }

  std::size_t cached_bytes() const override { return std::size_t{8} << 20; }

 private:
  int index_;
  Stream stream_ = nullptr;
  cudaEvent_t marked_ = nullptr;
};

}  // namespace

std::shared_ptr<Device> gpu(int index) { return std::make_shared<Gpu>(index); }

}  // namespace dpcomm
