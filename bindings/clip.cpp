#include "clip.hpp"

#include <pybind11/stl.h>

#include "memory.hpp"
#include "privacy/clip.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// `blocks`: (address, columns, row stride in elements) of each.
std::size_t clip_sum_of(
    const std::vector<std::tuple<std::uintptr_t, std::size_t, std::size_t>>& blocks,
    std::size_t rows, const std::string& dtype, double clip_norm, std::uintptr_t total,
    std::uintptr_t norms, int threads, const std::string& isa) {
  std::vector<GradBlock> grads;
  for (const auto& [address, columns, stride] : blocks) {
    grads.push_back({pointer_to<const void>(address), columns, stride});
  }
  const DType type = dtype_of(dtype);
  const Isa chosen = isa_of(isa);
  const py::gil_scoped_release unlocked;
  return clip_sum(grads, rows, type, clip_norm, pointer_to<float>(total), pointer_to<double>(norms),
                  threads, chosen);
}

}  // namespace

void bind_clip(py::module_& module) {
  module.def("clip_sum", &clip_sum_of, py::arg("blocks"), py::arg("rows"), py::arg("dtype"),
             py::arg("clip_norm"), py::arg("total"), py::arg("norms"), py::arg("threads") = 1,
             py::arg("isa") = "auto");
}

}  // namespace dpcomm
