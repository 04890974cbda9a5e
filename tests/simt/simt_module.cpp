#include "cuda.hpp"
#include "simt/machine.hpp"

namespace py = pybind11;

// What _cuda has, on the SIMT machine, and what only the machine can be told.
PYBIND11_MODULE(_simt, module) {
  using namespace dpcomm;
  bind_cuda(module);
  module.def(
      "set_device",
      [](int multiprocessors, int shared_bytes) {
        simt::device() = {.multiprocessors = multiprocessors, .shared_bytes = shared_bytes};
      },
      py::arg("multiprocessors"), py::arg("shared_bytes"));
  module.def(
      "set_reverse",
      [](bool reverse) {
        simt::set_order(reverse ? simt::Order::kReverse : simt::Order::kForward);
      },
      py::arg("reverse"));
}
