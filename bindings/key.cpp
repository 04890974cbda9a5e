#include "key.hpp"

#include "base/error.hpp"

namespace py = pybind11;

namespace dpcomm {

Generator generator_of(std::string_view name) {
  if (name == "chacha20") return Generator::kChaCha20;
  if (name == "philox") return Generator::kPhilox;
  throw UsageError(concat("generator '", name, "' is unknown: use chacha20 or philox"));
}

NoiseKey key_of(const py::bytes& bytes) {
  const std::string_view view = bytes;
  DPCOMM_CHECK(view.size() == 32, UsageError, "a noise key of ", view.size(),
               " bytes: give 32, as from dpcomm.privacy.noise.new_key()");
  NoiseKey key;
  for (std::size_t i = 0; i < 32; ++i) {
    const auto byte = static_cast<std::uint32_t>(static_cast<unsigned char>(view[i]));
    key.words[i / 4] = (i % 4 == 0 ? 0 : key.words[i / 4]) | byte << (8 * (i % 4));
  }
  return key;
}

}  // namespace dpcomm
