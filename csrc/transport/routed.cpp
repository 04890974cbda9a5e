#include "transport/routed.hpp"

#include <algorithm>
#include <type_traits>

namespace dpcomm {

RoutedTransport::RoutedTransport(std::shared_ptr<Transport> near, std::shared_ptr<Transport> far,
                                 std::vector<int> hosts)
    : Transport(far->rank(), far->size(), far->timeout()),
      near_(std::move(near)),
      far_(std::move(far)),
      hosts_(std::move(hosts)),
      places_(size(), -1),
      name_(concat(near_->name(), "+", far_->name())) {
  int place = 0;
  for (int peer = 0; peer < size(); ++peer) {
    if (hosts_[peer] == hosts_[rank()]) places_[peer] = place++;
  }
  near_->on_wait([this] { waiting(); });
  far_->on_wait([this] { waiting(); });
}

// First the near messages of a round, then the far ones, on every rank: who waits, waits for one
// that is no further, so that none waits in a circle. A rank that waits for a near one still moves
// its far messages on, for it looks now and then whether any rank has failed.
void RoutedTransport::exchange(const Stamp& stamp, std::span<const Outgoing> sends,
                               std::span<const Incoming> receives) {
  const auto part = [&](const auto& messages, bool near) {
    std::vector<std::decay_t<decltype(messages[0])>> some;
    for (auto message : messages) {
      if (is_near(message.peer) != near) continue;
      if (near) message.peer = places_[message.peer];
      some.push_back(message);
    }
    return some;
  };
  for (const bool near : {true, false}) {
    const auto out = part(sends, near);
    const auto in = part(receives, near);
    if (!out.empty() || !in.empty()) (near ? near_ : far_)->exchange(stamp, out, in);
  }
}

std::shared_ptr<Transport> RoutedTransport::split(const Stamp& stamp,
                                                  const std::vector<int>& members) {
  std::vector<int> places, hosts;
  for (int member : members) {
    hosts.push_back(hosts_[member]);
    if (is_near(member)) places.push_back(places_[member]);
  }
  auto near = near_->split(stamp, places);
  if (places.size() == members.size()) return near;
  near->set_whole(near_, places);
  auto far = far_->split(stamp, members);
  far->set_whole(far_, members);
  auto made = std::make_shared<RoutedTransport>(std::move(near), std::move(far), std::move(hosts));
  made->on_wait(wait_callback());
  return made;
}

void RoutedTransport::abort(FailureKind kind, std::string_view reason) noexcept {
  near_->abort(kind, reason);
  far_->abort(kind, reason);
}

void RoutedTransport::close() noexcept {
  near_->close();
  far_->close();
}

std::shared_ptr<Transport> routed_transport(std::shared_ptr<Transport> near,
                                            std::shared_ptr<Transport> far,
                                            std::vector<int> hosts) {
  std::vector<int> neighbours;
  for (int peer = 0; peer < far->size(); ++peer) {
    if (hosts[peer] == hosts[far->rank()]) neighbours.push_back(peer);
  }
  near->set_whole(far, neighbours);
  return std::make_shared<RoutedTransport>(std::move(near), std::move(far), std::move(hosts));
}

}  // namespace dpcomm
