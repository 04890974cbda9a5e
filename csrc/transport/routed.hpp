#pragma once

#include <memory>
#include <vector>

#include "transport/transport.hpp"

namespace dpcomm {

// Ranks of several hosts: messages within a host go through `near`, which knows this host's ranks
// alone, and the others through `far`, which knows all.
class RoutedTransport final : public Transport {
 public:
  // `hosts` says which host each rank is on; `near` numbers those of this one as they come in it.
  RoutedTransport(std::shared_ptr<Transport> near, std::shared_ptr<Transport> far,
                  std::vector<int> hosts);

  std::string_view name() const override { return name_; }
  void exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                std::span<const Incoming> receives) override;
  std::shared_ptr<Transport> split(const Stamp& stamp, const std::vector<int>& members) override;
  void check_vendor(DType dtype) const override { far_->check_vendor(dtype); }
  void vendor_all_reduce(const Stamp& stamp, const void* data, void* out) override {
    far_->vendor_all_reduce(stamp, data, out);
  }
  void check_peers_live(const Stamp& stamp) override { near_->check_peers_live(stamp); }
  void abort(FailureKind kind, std::string_view reason) noexcept override;
  void close() noexcept override;

 private:
  bool is_near(int peer) const { return places_[peer] >= 0; }
  void check_own_failure() override { near_->check_failure(); }

  std::shared_ptr<Transport> near_;
  std::shared_ptr<Transport> far_;
  std::vector<int> hosts_;
  std::vector<int> places_;  // of each rank in `near`, or -1
  std::string name_;
};

// Over two transports of a whole job: what ends the one ends the other.
std::shared_ptr<Transport> routed_transport(std::shared_ptr<Transport> near,
                                            std::shared_ptr<Transport> far, std::vector<int> hosts);

}  // namespace dpcomm
