#include "base/openmp.hpp"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <mutex>
#include <string>
#include <string_view>

namespace dpcomm {
namespace {

using Work = std::function<void(int)>;

struct Runtime {
  // What GCC makes of `#pragma omp parallel`; the runtimes of LLVM and Intel have it too.
  void (*parallel)(void (*region)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
};

struct Region {
  const Runtime& runtime;
  int parts;
  const Work& work;
  std::atomic<bool> ran = false;
};

// The runtime may give fewer threads than asked: inside another region, one.
void run_region(void* data) {
  Region& region = *static_cast<Region*>(data);
  if (region.runtime.num_threads() != region.parts) return;
  region.work(region.runtime.thread_num());
  region.ran.store(true, std::memory_order_relaxed);
}

// How many objects this process ever loaded: a loaded runtime changes it.
unsigned long long loads() {
  unsigned long long count = 0;
  ::dl_iterate_phdr(
      [](dl_phdr_info* object, std::size_t, void* found) {
        *static_cast<unsigned long long*>(found) = object->dlpi_adds;
        return 1;
      },
      &count);
  return count;
}

std::string path_of_runtime() {
  std::string found_path;
  ::dl_iterate_phdr(
      [](dl_phdr_info* object, std::size_t, void* found) {
        auto& best = *static_cast<std::string*>(found);
        const std::string_view path = object->dlpi_name;
        const std::string_view name = path.substr(path.rfind('/') + 1);
        const bool openmp = name.starts_with("libgomp") || name.starts_with("libiomp5") ||
                            name.starts_with("libomp");
        const bool torch = path.find("/torch/") != path.npos;
        if (openmp && (best.empty() || torch)) best = path;
        return 0;
      },
      &found_path);
  return found_path;
}

template <class F>
void find(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(::dlsym(library, name));
}

Runtime find_runtime() {
  Runtime runtime;
  const std::string path = path_of_runtime();
  void* library = path.empty() ? nullptr : ::dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return {};
  find(library, "GOMP_parallel", runtime.parallel);
  find(library, "omp_get_thread_num", runtime.thread_num);
  find(library, "omp_get_num_threads", runtime.num_threads);
  const bool whole = runtime.parallel && runtime.thread_num && runtime.num_threads;
  return whole ? runtime : Runtime{};
}

// One that is found stays: the handle that found it keeps it loaded.
Runtime loaded_runtime() {
  static std::mutex mutex;
  static unsigned long long looked_at = 0;
  static Runtime runtime;
  const std::lock_guard lock(mutex);
  if (const unsigned long long now = loads(); !runtime.parallel && now != looked_at) {
    looked_at = now;
    runtime = find_runtime();
  }
  return runtime;
}

std::atomic<bool> forked{false};
const int watch_forks = ::pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool run_on_openmp(int parts, const Work& work) {
  if (forked) return false;
  const Runtime runtime = loaded_runtime();
  if (!runtime.parallel) return false;
  Region region{runtime, parts, work};
  runtime.parallel(&run_region, &region, static_cast<unsigned>(parts), 0);
  return region.ran;
}

}  // namespace dpcomm
