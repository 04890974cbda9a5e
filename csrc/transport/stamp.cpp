#include "transport/stamp.hpp"

#include "base/error.hpp"

namespace dpcomm {

std::string_view name_of(Operation operation) {
  switch (operation) {
    case Operation::kNone:
      return "nothing";
    case Operation::kAllReduce:
      return "all_reduce";
    case Operation::kReduceScatter:
      return "reduce_scatter";
    case Operation::kAllGather:
      return "all_gather";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kReduce:
      return "reduce";
    case Operation::kAllToAll:
      return "all_to_all";
    case Operation::kBarrier:
      return "barrier";
    case Operation::kSplit:
      return "split";
    case Operation::kOpenGpu:
      return "open_gpu";
  }
  return "an unknown operation";
}

std::string describe(const Stamp& stamp) {
  return concat(name_of(stamp.operation), " #", stamp.sequence, " (", stamp.count, " ",
                name_of(stamp.dtype), ", ", name_of(stamp.redop), ", ", stamp.algorithm, ", root ",
                stamp.root, stamp.epilogue[0] ? ", epilogue " : "", stamp.epilogue, ")");
}

std::string position(const Stamp& stamp) {
  return concat(name_of(stamp.operation), " #", stamp.sequence, ", round ", stamp.round, "/",
                stamp.rounds, ", ", stamp.algorithm);
}

void check_same(const Stamp& own, std::uint64_t own_bytes, const Header& theirs, int peer) {
  if (theirs.stamp == own && theirs.bytes == own_bytes) return;
  std::string sizes;
  if (describe(own) == describe(theirs.stamp)) {
    sizes = concat("\n  in round ", own.round, " it expects ", own_bytes, " bytes, in round ",
                   theirs.stamp.round, " rank ", peer, " sent ", theirs.bytes);
  }
  throw MismatchError(concat("ranks disagree\n  this rank is in ", describe(own), "\n  rank ", peer,
                             " is in ", describe(theirs.stamp), sizes, kAgree));
}

}  // namespace dpcomm
