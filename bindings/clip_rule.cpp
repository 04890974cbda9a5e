#include "clip_rule.hpp"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace dpcomm {

void bind_clip_rule(py::module_& module) {
  py::class_<HeldClipRule>(module, "ClipRule")
      .def(py::init([](std::vector<double> norms, double stability) {
             return HeldClipRule{std::move(norms), stability};
           }),
           py::arg("norms"), py::arg("stability") = 0.0);
}

}  // namespace dpcomm
