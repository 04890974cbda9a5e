#pragma once

#include <climits>
#include <cstddef>
#include <string>

#include "base/stream.hpp"

// The few functions of NCCL that we call, in a library that is opened at run time: neither NCCL nor
// its header is needed to build dpcomm. The declarations follow NCCL's public C interface, which
// only grows (nccl.h of 2.18 and newer).

namespace dpcomm::nccl {

using Comm = struct ncclComm*;

struct UniqueId {
  char internal[128];
};

enum Result : int {
  kSuccess,
  kUnhandledCudaError,
  kSystemError,
  kInternalError,
  kInvalidArgument,
  kInvalidUsage,
  kRemoteError,
  kInProgress
};

enum DataType : int {
  kUint8 = 1,
  kInt32 = 2,
  kInt64 = 4,
  kFloat16 = 6,
  kFloat32 = 7,
  kFloat64 = 8,
  kBfloat16 = 9
};

enum Reduction : int { kSum = 0, kMax = 2, kMin = 3 };

// As it stood in 2.18. NCCL takes what is missing behind it as not given, by size and version.
struct Config {
  static constexpr int kUndefined = INT_MIN;

  std::size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = kUndefined;
  int cga_cluster_size = kUndefined;
  int min_ctas = kUndefined;
  int max_ctas = kUndefined;
  const char* net_name = nullptr;
  int split_share = kUndefined;
};

struct Library {
  static constexpr int kOldest = 21800;

  // EnvironmentError where there is none at `path`, or one that is older. DPCOMM_NCCL goes first.
  static Library open(const std::string& path);

  int version = 0;  // 23004 is 2.30.4

  Result (*get_unique_id)(UniqueId*) = nullptr;
  Result (*comm_init)(Comm*, int size, UniqueId, int rank, Config*) = nullptr;
  Result (*comm_abort)(Comm) = nullptr;
  Result (*get_async_error)(Comm, Result*) = nullptr;
  const char* (*get_error_string)(Result) = nullptr;
  const char* (*get_last_error)(Comm) = nullptr;
  Result (*group_start)() = nullptr;
  Result (*group_end)() = nullptr;
  Result (*send)(const void*, std::size_t, DataType, int peer, Comm, Stream) = nullptr;
  Result (*receive)(void*, std::size_t, DataType, int peer, Comm, Stream) = nullptr;
  Result (*reduce_scatter)(const void*, void*, std::size_t, DataType, Reduction, Comm,
                           Stream) = nullptr;
  Result (*all_gather)(const void*, void*, std::size_t, DataType, Comm, Stream) = nullptr;
};

std::string version_text(int version);  // "2.30.4"

}  // namespace dpcomm::nccl
