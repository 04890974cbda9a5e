#include "ghost.hpp"

#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "clip_rule.hpp"
#include "memory.hpp"
#include "model/ghost_sum.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// Inputs and outputs; where the sums go, of the bias 0 if there is none.
using PyLayer = std::tuple<int, int, std::uintptr_t, std::uintptr_t>;

GhostSum ghost_sum(const std::vector<PyLayer>& of_layers, int threads, const std::string& isa) {
  std::vector<GhostLayer> layers;
  for (const auto& [inputs, outputs, weight, bias] : of_layers) {
    layers.push_back({inputs, outputs, pointer_to<float>(weight), pointer_to<float>(bias)});
  }
  return GhostSum(layers, threads, isa_of(isa));
}

// Inputs and their stride; gradients, likewise.
using PyUse = std::tuple<std::uintptr_t, std::size_t, std::uintptr_t, std::size_t>;

std::size_t add_ghosts(GhostSum& sum, const std::vector<PyUse>& of_layers, std::size_t samples,
                       float scale, const HeldClipRule& rule, std::uintptr_t norms,
                       bool accumulate) {
  const py::gil_scoped_release unlocked;
  std::vector<GhostUse> uses;
  for (const auto& [inputs, input_stride, gradients, gradient_stride] : of_layers) {
    uses.push_back({pointer_to<const float>(inputs), input_stride,
                    pointer_to<const float>(gradients), gradient_stride});
  }
  return sum.add(uses, samples, scale, rule.rule(), pointer_to<double>(norms), accumulate);
}

}  // namespace

void bind_ghost(py::module_& module) {
  py::class_<GhostSum>(module, "GhostSum")
      .def(py::init(&ghost_sum), py::arg("layers"), py::arg("threads"), py::arg("isa") = "auto")
      .def("add", &add_ghosts, py::arg("uses"), py::arg("samples"), py::arg("scale"),
           py::arg("rule"), py::arg("norms"), py::arg("accumulate"));
}

}  // namespace dpcomm
