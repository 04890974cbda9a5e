#include "transport/arena.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <iterator>

#include "base/cache.hpp"

namespace dpcomm {

Arena::Arena(std::byte* base, std::size_t bytes, std::size_t lead)
    : base_(base), bytes_(bytes), lead_(lead), process_(::getpid()) {
  if (bytes > 0) free_.emplace(0, bytes);
}

void* Arena::allocate(std::size_t bytes) {
  const std::size_t length = std::max<std::size_t>(1, (lead_ + bytes + kPage - 1) / kPage) * kPage;
  const std::lock_guard lock(mutex_);
  const auto hole =
      std::find_if(free_.begin(), free_.end(), [&](const auto& f) { return f.second >= length; });
  if (hole == free_.end()) return nullptr;
  const auto [offset, room] = *hole;
  free_.erase(hole);
  if (room > length) free_.emplace(offset + length, room - length);
  used_.emplace(offset, length);
  return base_ + offset + lead_;
}

void Arena::release(void* data) noexcept {
  if (::getpid() != process_) return;
  const std::lock_guard lock(mutex_);
  const auto used = used_.find(static_cast<std::byte*>(data) - base_ - lead_);
  if (used == used_.end()) return;
  auto [offset, length] = *used;
  used_.erase(used);
  ::madvise(base_ + offset, length, MADV_REMOVE);
  const auto after = free_.upper_bound(offset);
  if (after != free_.end() && after->first == offset + length) {
    length += after->second;
    free_.erase(after);
  }
  const auto next = free_.upper_bound(offset);
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += length;
      return;
    }
  }
  free_.emplace(offset, length);
}

bool Arena::holds(const void* data, std::size_t bytes) const {
  const std::less_equal<const std::byte*> le;  // of unrelated pointers, which < does not order
  const auto* const begin = static_cast<const std::byte*>(data);
  return bytes_ > 0 && le(base_, begin) && le(begin + bytes, base_ + bytes_);
}

}  // namespace dpcomm
