#include "engine/vendor.hpp"

#include <algorithm>

#include "engine/execute.hpp"

namespace dpcomm {
namespace {

class VendorRun {
 public:
  VendorRun(Transport& transport, const Stamp& stamp, const Arguments& arguments, Scratch& scratch)
      : vendor_(*transport.vendor()),
        device_(transport.device()),
        stamp_(stamp),
        call_(arguments),
        scratch_(scratch),
        rank_(transport.rank()),
        size_(transport.size()),
        width_(size_of(stamp.dtype)) {}

  void all_reduce() {
    const std::size_t share = (call_.count + size_ - 1) / size_;
    const std::size_t shard = (share + kGrain - 1) / kGrain * kGrain;
    const bool whole = shard * size_ == call_.count;
    auto* const work =
        whole ? static_cast<std::byte*>(call_.out) : scratch_.at_least(shard * size_ * width_);
    const void* data = call_.data;
    if (!whole || call_.scale != 1) {
      device_->multiply(stamp_.dtype, work, call_.data, call_.count, call_.scale);
      data = work;
    }
    std::byte* const own = work + rank_ * shard * width_;
    vendor_.reduce_scatter(stamp_, data, own, shard);
    const std::size_t begin = std::min(call_.count, rank_ * shard);
    complete(own, begin, std::min(call_.count, begin + shard) - begin);
    vendor_.all_gather(stamp_, own, work, shard);
    if (!whole) device_->copy(call_.out, work, call_.count * width_);
  }

  void reduce_scatter() {
    const void* data = call_.data;
    if (call_.scale != 1) {
      const std::size_t count = call_.count * size_;
      void* const work = scratch_.at_least(count * width_);
      device_->multiply(stamp_.dtype, work, call_.data, count, call_.scale);
      data = work;
    }
    vendor_.reduce_scatter(stamp_, data, call_.out, call_.count);
    complete(call_.out, rank_ * call_.count, call_.count);
  }

  void all_gather() { vendor_.all_gather(stamp_, call_.data, call_.out, call_.count); }

 private:
  void complete(void* done, std::size_t begin, std::size_t count) {
    if (count == 0) return;
    if (stamp_.redop == RedOp::kMean)
      device_->divide(stamp_.dtype, done, count, static_cast<double>(size_));
    if (call_.epilogue) call_.epilogue(done, begin, count);
  }

  Vendor& vendor_;
  std::shared_ptr<Device> device_;
  const Stamp& stamp_;
  const Arguments& call_;
  Scratch& scratch_;
  std::size_t rank_;
  std::size_t size_;
  std::size_t width_;  // bytes of an element
};

}  // namespace

void run_vendor(Transport& transport, const Stamp& stamp, const Arguments& arguments,
                Scratch& scratch) {
  VendorRun run(transport, stamp, arguments, scratch);
  switch (stamp.operation) {
    case Operation::kReduceScatter:
      return run.reduce_scatter();
    case Operation::kAllGather:
      return run.all_gather();
    default:
      return run.all_reduce();
  }
}

}  // namespace dpcomm
