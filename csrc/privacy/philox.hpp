#pragma once

#include <cstdint>

#include "base/host_device.hpp"

namespace dpcomm {

// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): fast and statistically sound, but not secure against one who sees its output.
//
// A counter of four words becomes four random words in place. The words stand in the low halves of
// 64-bit lanes, where the products come out; the high halves may hold anything.
template <class L>
DPCOMM_HD void philox4x32(typename L::Wide* words, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const auto product0 = L::multiply_low(words[0], 0xD2511F53u);
    const auto product2 = L::multiply_low(words[2], 0xCD9E8D57u);
    words[0] = (product2 >> 32) ^ words[1] ^ key0;
    words[1] = product2;
    words[2] = (product0 >> 32) ^ words[3] ^ key1;
    words[3] = product0;
    key0 += 0x9E3779B9u;  // the golden ratio and sqrt(3) - 1, as Weyl sequences
    key1 += 0xBB67AE85u;
  }
}

}  // namespace dpcomm
