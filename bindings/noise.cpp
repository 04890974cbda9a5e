#include "noise.hpp"

#include <pybind11/stl.h>

#include <string_view>

#include "key.hpp"
#include "memory.hpp"
#include "privacy/chacha20.hpp"
#include "privacy/gaussian.hpp"
#include "privacy/noise.hpp"
#include "privacy/philox.hpp"
#include "privacy/scalar.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

void add_noise_to(std::uintptr_t data, std::size_t count, std::uint64_t offset,
                  const NoiseSpec& spec, float scale, int threads, const std::string& isa) {
  const Isa chosen = isa_of(isa);
  const py::gil_scoped_release unlocked;
  add_noise(pointer_to<float>(data), count, offset, spec, scale, threads, chosen);
}

// The generators as their papers publish them, for the known-answer tests.
std::array<std::uint32_t, 16> chacha20_block(const py::bytes& key,
                                             std::array<std::uint32_t, 4> input) {
  std::array<std::uint32_t, 16> block;
  ChaCha20<std::uint32_t>::block(key_of(key).words.data(), input.data(), block.data());
  return block;
}

std::array<std::uint32_t, 4> philox4x32_block(std::array<std::uint32_t, 4> counter,
                                              std::array<std::uint32_t, 2> key) {
  std::uint64_t words[4];
  std::copy(counter.begin(), counter.end(), words);
  philox4x32<Scalar>(words, key[0], key[1]);
  for (int i = 0; i < 4; ++i) counter[i] = static_cast<std::uint32_t>(words[i]);
  return counter;
}

std::pair<float, float> gaussian_pair_of(std::uint32_t a, std::uint32_t b) {
  std::pair<float, float> pair;
  gaussian_pair<Scalar>(a, b, pair.first, pair.second);
  return pair;
}

}  // namespace

void bind_noise(py::module_& module) {
  py::class_<NoiseSpec>(module, "NoiseSpec", "The noise of a step. Tells nobody its key.")
      .def(py::init([](const py::bytes& key, std::uint64_t step, double std,
                       std::string_view generator) {
             return NoiseSpec{key_of(key), generator_of(generator), step, std};
           }),
           py::arg("key"), py::arg("step"), py::arg("std"), py::arg("generator") = "chacha20");
  module.def("add_noise", &add_noise_to, py::arg("data"), py::arg("count"), py::arg("offset"),
             py::arg("spec"), py::arg("scale") = 1.0f, py::arg("threads") = 1,
             py::arg("isa") = "auto");
  module.def("noise_isas", [] {
    std::vector<std::string> names = {"scalar", "generic"};
    if (supported(Isa::kAvx2)) names.emplace_back("avx2");
    if (supported(Isa::kAvx512)) names.emplace_back("avx512");
    return names;
  });
  module.def("chacha20_block", &chacha20_block, py::arg("key"), py::arg("input"));
  module.def("philox4x32_block", &philox4x32_block, py::arg("counter"), py::arg("key"));
  module.def("gaussian_pair", &gaussian_pair_of, py::arg("a"), py::arg("b"));
}

}  // namespace dpcomm
