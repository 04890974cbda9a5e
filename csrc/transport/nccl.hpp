#pragma once

#include <memory>
#include <vector>

#include "transport/nccl_library.hpp"
#include "transport/transport.hpp"
#include "transport/vendor.hpp"

namespace dpcomm {

// Messages between GPUs by ncclSend and ncclRecv, a round in one group, and NCCL's own collectives.
//
// NCCL checks no arguments across ranks and waits for ever. So the ranks meet on the host before
// and after each collective, over the transport that they came together on: there they find out
// that they disagree, or that one is lost or late. In between NCCL is polled and never waited for.
class NcclTransport final : public Transport, public Vendor {
 public:
  // Collective over `host`, in what the stamp names. `max_ctas` limits the thread blocks of NCCL's
  // kernels, for ranks that share a GPU; 0: NCCL's choice. The device must be current.
  NcclTransport(const nccl::Library& library, std::shared_ptr<Transport> host,
                std::shared_ptr<Device> device, int max_ctas, const Stamp& stamp);
  ~NcclTransport() override { close(); }

  std::string_view name() const override { return "nccl"; }
  std::shared_ptr<Device> device() override { return device_; }
  Vendor* vendor() override { return this; }

  void exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override;
  void finish(const Stamp& stamp) override;
  void reduce_scatter(const Stamp& stamp, const void* data, void* shard,
                      std::size_t count) override;
  void all_gather(const Stamp& stamp, const void* shard, void* out, std::size_t count) override;

  std::shared_ptr<Transport> split(const Stamp& stamp, const std::vector<int>& members) override;
  void abort(FailureKind kind, std::string_view reason) noexcept override;
  void close() noexcept override;

 private:
  void open(const Stamp& stamp);
  void enter(const Stamp& stamp);
  void meet(Stamp stamp);
  template <class Look>
  void wait(const Stamp& stamp, Look look);
  void settle(const Stamp& stamp, nccl::Result result, const char* call);
  void check(const Stamp& stamp, nccl::Result result, const char* call);
  void check_own_failure() override { host_->check_failure(); }

  nccl::Library library_;
  std::shared_ptr<Transport> host_;
  std::shared_ptr<Device> device_;
  int max_ctas_;
  nccl::Comm comm_ = nullptr;
  std::uint64_t met_ = 0;  // the collective that the ranks have begun together
};

}  // namespace dpcomm
