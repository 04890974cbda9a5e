#pragma once

#include <cstddef>

#include "transport/stamp.hpp"

namespace dpcomm {

// The collectives of a library that has its own, on equal shards of stamp.dtype. What
// Transport::exchange promises and raises holds here too.
class Vendor {
 public:
  // shard[count] = block `rank` of the reduction of all ranks' data[size * count]; kMean adds.
  // `shard` may be this rank's block of `data`.
  virtual void reduce_scatter(const Stamp& stamp, const void* data, void* shard,
                              std::size_t count) = 0;

  // out[size * count] = all ranks' shard[count]. `shard` may be this rank's block of `out`.
  virtual void all_gather(const Stamp& stamp, const void* shard, void* out, std::size_t count) = 0;

 protected:
  ~Vendor() = default;
};

}  // namespace dpcomm
