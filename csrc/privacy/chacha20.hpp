#pragma once

#include <cstdint>

#include "base/host_device.hpp"

namespace dpcomm {

// ChaCha20's block function (RFC 8439, section 2.3), the cryptographically secure generator: words
// that no one without the key can tell from uniform ones.
//
// `Word` is a std::uint32_t or several in a vector, each of its own block.
template <class Word>
struct ChaCha20 {
  DPCOMM_HD static Word rotate(Word x, int by) { return (x << by) | (x >> (32 - by)); }

  DPCOMM_HD static void quarter_round(Word& a, Word& b, Word& c, Word& d) {
    a += b, d = rotate(d ^ a, 16);
    c += d, b = rotate(b ^ c, 12);
    a += b, d = rotate(d ^ a, 8);
    c += d, b = rotate(b ^ c, 7);
  }

  // `key`: 8 words; `input`: the last row of the state, in the RFC the counter and the nonce;
  // `out`: the 16 words of the block.
  DPCOMM_HD static void block(const std::uint32_t* key, const Word* input, Word* out) {
    Word state[16] = {Word{} + 0x61707865u,
                      Word{} + 0x3320646eu,
                      Word{} + 0x79622d32u,
                      Word{} + 0x6b206574u,
                      Word{} + key[0],
                      Word{} + key[1],
                      Word{} + key[2],
                      Word{} + key[3],
                      Word{} + key[4],
                      Word{} + key[5],
                      Word{} + key[6],
                      Word{} + key[7],
                      input[0],
                      input[1],
                      input[2],
                      input[3]};
    Word x[16];
    for (int i = 0; i < 16; ++i) x[i] = state[i];
    for (int round = 0; round < 10; ++round) {
      quarter_round(x[0], x[4], x[8], x[12]);
      quarter_round(x[1], x[5], x[9], x[13]);
      quarter_round(x[2], x[6], x[10], x[14]);
      quarter_round(x[3], x[7], x[11], x[15]);
      quarter_round(x[0], x[5], x[10], x[15]);
      quarter_round(x[1], x[6], x[11], x[12]);
      quarter_round(x[2], x[7], x[8], x[13]);
      quarter_round(x[3], x[4], x[9], x[14]);
    }
    for (int i = 0; i < 16; ++i) out[i] = x[i] + state[i];
  }
};

}  // namespace dpcomm
