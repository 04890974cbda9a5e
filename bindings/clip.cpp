#include "clip.hpp"

#include <pybind11/stl.h>

#include "clip_rule.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

std::size_t clip_sum_of(const PyBlocks& blocks, std::size_t rows, const std::string& dtype,
                        const HeldClipRule& rule, std::uintptr_t total, std::uintptr_t norms,
                        int threads, const std::string& isa) {
  const std::vector<GradBlock> grads = grads_of(blocks);
  const DType type = dtype_of(dtype);
  const Isa chosen = isa_of(isa);
  const py::gil_scoped_release unlocked;
  return clip_sum(grads, rows, type, rule.rule(), pointer_to<float>(total),
                  pointer_to<double>(norms), threads, chosen);
}

}  // namespace

void bind_clip(py::module_& module) {
  module.def("clip_sum", &clip_sum_of, py::arg("blocks"), py::arg("rows"), py::arg("dtype"),
             py::arg("rule"), py::arg("total"), py::arg("norms"), py::arg("threads") = 1,
             py::arg("isa") = "auto");
}

}  // namespace dpcomm
