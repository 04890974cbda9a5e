#include "simt/memory.hpp"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simt/machine.hpp"

// The address sanitizer's; null where a program runs without it.
extern "C" [[gnu::weak]] void __asan_poison_memory_region(const volatile void*, std::size_t);

namespace dpcomm::simt {
namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr std::size_t kCanaryBytes = 64;
constexpr std::byte kNaN{0xff};
constexpr std::byte kCanary{0xa5};

}  // namespace

SharedMemory::SharedMemory(std::size_t bytes)
    : bytes_(bytes), memory_(std::make_unique<std::byte[]>(bytes + kCanaryBytes)) {
  std::fill_n(memory_.get(), bytes, kNaN);
  std::fill_n(memory_.get() + bytes, kCanaryBytes, kCanary);
  if (__asan_poison_memory_region != nullptr) {
    __asan_poison_memory_region(memory_.get() + bytes, kCanaryBytes);
  }
}

bool SharedMemory::intact() const {
  const std::byte* canary = memory_.get() + bytes_;
  return std::all_of(canary, canary + kCanaryBytes, [](std::byte b) { return b == kCanary; });
}

void poison_static_shared() {
  static const volatile char here = 0;
  threadIdx = {};  // touched, hence allocated
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {
        bool ours = false;
        std::size_t tls_bytes = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          const auto begin = info->dlpi_addr + segment.p_vaddr;
          const auto address = reinterpret_cast<std::uintptr_t>(&here);
          if (segment.p_type == PT_LOAD) {
            ours |= begin <= address && address < begin + segment.p_memsz;
          }
          if (segment.p_type == PT_TLS) tls_bytes = segment.p_memsz;
        }
        if (!ours) return 0;
        std::memset(info->dlpi_tls_data, std::to_integer<int>(kNaN), tls_bytes);
        return 1;
      },
      nullptr);
}

Stacks::Stacks(unsigned count) : bytes_(count * kStackBytes) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  DPCOMM_CHECK(memory != MAP_FAILED, EnvironmentError, "simt: no memory for ", count,
               " stacks: launch smaller blocks");
  memory_ = static_cast<std::byte*>(memory);
}

Stacks::~Stacks() { munmap(memory_, bytes_); }

std::span<std::byte> Stacks::operator[](unsigned i) const {
  return {memory_ + i * kStackBytes, kStackBytes};
}

}  // namespace dpcomm::simt
