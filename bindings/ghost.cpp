#include "ghost.hpp"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "clip_rule.hpp"
#include "memory.hpp"
#include "model/ghost_clip.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// Inputs, their number and stride; gradients, likewise; whether there is a bias; the clipped ones.
using PyLayer = std::tuple<std::uintptr_t, std::size_t, std::size_t, std::uintptr_t, std::size_t,
                           std::size_t, bool, std::uintptr_t>;

std::size_t ghost_clip_of(const std::vector<PyLayer>& layers, std::size_t samples, float scale,
                          const HeldClipRule& rule, std::uintptr_t norms, int threads) {
  const py::gil_scoped_release unlocked;
  std::vector<GhostLayer> uses;
  for (const auto& [inputs, input_count, input_stride, gradients, gradient_count, gradient_stride,
                    has_bias, clipped] : layers) {
    uses.push_back({pointer_to<const float>(inputs), input_count, input_stride,
                    pointer_to<const float>(gradients), gradient_count, gradient_stride, has_bias,
                    pointer_to<float>(clipped)});
  }
  return ghost_clip(uses, samples, scale, rule.rule(), pointer_to<double>(norms), threads);
}

}  // namespace

void bind_ghost(py::module_& module) {
  module.def("ghost_clip", &ghost_clip_of, py::arg("layers"), py::arg("samples"), py::arg("scale"),
             py::arg("rule"), py::arg("norms"), py::arg("threads") = 1);
}

}  // namespace dpcomm
