#pragma once

#include <cstddef>

#include "simt/machine.hpp"

// Copies into shared memory that the hardware runs in the background.

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes) {
  dpcomm::simt::copy_async(to, from, bytes);
}
inline void __pipeline_commit() { dpcomm::simt::commit_copies(); }
inline void __pipeline_wait_prior(std::size_t groups) { dpcomm::simt::wait_for_copies(groups); }
