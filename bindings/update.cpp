#include "update.hpp"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace dpcomm {
namespace {

void update_of(std::uintptr_t gradient, std::uintptr_t parameters,
               const std::vector<std::uintptr_t>& states, std::size_t count, std::uint64_t offset,
               const NoiseSpec& spec, float scale, const Optimizer& optimizer, int threads,
               const std::string& isa) {
  const UpdateShard shard = shard_of(gradient, parameters, states, optimizer);
  const Isa chosen = isa_of(isa);
  const py::gil_scoped_release unlocked;
  update(shard, count, offset, spec, scale, optimizer, threads, chosen);
}

}  // namespace

void bind_update(py::module_& module) {
  py::class_<Sgd>(module, "Sgd", "torch.optim.SGD without dampening.")
      .def(py::init([](double lr, double momentum, double weight_decay, bool nesterov) {
             return Sgd{lr, momentum, weight_decay, nesterov};
           }),
           py::arg("lr"), py::arg("momentum") = 0.0, py::arg("weight_decay") = 0.0,
           py::arg("nesterov") = false);
  py::class_<Adam>(module, "Adam", "torch.optim.Adam, and AdamW by decoupled_weight_decay.")
      .def(py::init([](double lr, double beta1, double beta2, double eps, double weight_decay,
                       bool decoupled, std::uint64_t count) {
             return Adam{lr, beta1, beta2, eps, weight_decay, decoupled, count};
           }),
           py::arg("lr") = 1e-3, py::arg("beta1") = 0.9, py::arg("beta2") = 0.999,
           py::arg("eps") = 1e-8, py::arg("weight_decay") = 0.0,
           py::arg("decoupled_weight_decay") = false, py::arg("count") = 1)
      .def_readwrite("count", &Adam::count, "Of updates, with the next one.");
  module.def("update", &update_of, py::arg("gradient"), py::arg("parameters"), py::arg("states"),
             py::arg("count"), py::arg("offset"), py::arg("spec"), py::arg("scale"),
             py::arg("optimizer"), py::arg("threads") = 1, py::arg("isa") = "auto");
}

}  // namespace dpcomm
