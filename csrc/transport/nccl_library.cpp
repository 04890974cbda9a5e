#include "transport/nccl_library.hpp"

#include <dlfcn.h>

#include "base/env.hpp"
#include "base/error.hpp"

namespace dpcomm::nccl {
namespace {

template <class Function>
void find(void* handle, const std::string& path, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(::dlsym(handle, name));
  DPCOMM_CHECK(function, EnvironmentError, path, " has no ", name,
               "\n  fix: pip install a newer NCCL (nvidia-nccl-cu13), or set DPCOMM_NCCL to one");
}

}  // namespace

// Stays open to the end of the process: NCCL's own threads run in it.
Library Library::open(const std::string& path) {
  const std::string& chosen = env().nccl.empty() ? path : env().nccl;
  void* const handle = ::dlopen(chosen.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    throw EnvironmentError(concat("NCCL cannot be opened: ", ::dlerror(),
                                  "\n  fix: pip install nvidia-nccl-cu13, or set DPCOMM_NCCL to "
                                  "the path of libnccl.so.2"));
  }
  Library library;
  Result (*get_version)(int*) = nullptr;
  find(handle, chosen, "ncclGetVersion", get_version);
  get_version(&library.version);
  DPCOMM_CHECK(
      library.version >= kOldest, EnvironmentError, chosen, " is NCCL ",
      version_text(library.version), ", dpcomm needs ", version_text(kOldest),
      " or newer\n  fix: pip install a newer torch, or set DPCOMM_NCCL to a newer library");
  find(handle, chosen, "ncclGetUniqueId", library.get_unique_id);
  find(handle, chosen, "ncclCommInitRankConfig", library.comm_init);
  find(handle, chosen, "ncclCommAbort", library.comm_abort);
  find(handle, chosen, "ncclCommGetAsyncError", library.get_async_error);
  find(handle, chosen, "ncclGetErrorString", library.get_error_string);
  find(handle, chosen, "ncclGetLastError", library.get_last_error);
  find(handle, chosen, "ncclGroupStart", library.group_start);
  find(handle, chosen, "ncclGroupEnd", library.group_end);
  find(handle, chosen, "ncclSend", library.send);
  find(handle, chosen, "ncclRecv", library.receive);
  find(handle, chosen, "ncclReduceScatter", library.reduce_scatter);
  find(handle, chosen, "ncclAllGather", library.all_gather);
  return library;
}

std::string version_text(int version) {
  return concat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace dpcomm::nccl
