#include "sampling.hpp"

#include <pybind11/numpy.h>

#include "key.hpp"
#include "privacy/sampling.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

py::array_t<std::int64_t> poisson_sample_of(const py::bytes& key, std::uint64_t step,
                                            double sample_rate, std::int64_t begin,
                                            std::int64_t end, const std::string& isa) {
  const NoiseKey words = key_of(key);
  const Isa chosen = isa_of(isa);
  const auto ids = [&] {
    const py::gil_scoped_release unlocked;
    return poisson_sample(words, step, sample_rate, begin, end, chosen);
  }();
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(ids.size()), ids.data());
}

}  // namespace

void bind_sampling(py::module_& module) {
  module.def("poisson_sample", &poisson_sample_of, py::arg("key"), py::arg("step"),
             py::arg("sample_rate"), py::arg("begin"), py::arg("end"), py::arg("isa") = "auto");
}

}  // namespace dpcomm
