#include "mlp.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string_view>
#include <tuple>

#include "base/error.hpp"
#include "clip_rule.hpp"
#include "memory.hpp"
#include "model/mlp.hpp"
#include "records.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

using Ids = py::array_t<std::int64_t, py::array::c_style>;

Activation activation_of(std::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "tanh") return Activation::kTanh;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "gelu") return Activation::kGelu;
  throw UsageError(
      concat("activation '", name, "' is unknown: use none, relu, tanh, sigmoid or gelu"));
}

Loss loss_of(std::string_view name) {
  if (name == "binary_cross_entropy") return Loss::kBinaryCrossEntropy;
  if (name == "cross_entropy") return Loss::kCrossEntropy;
  if (name == "squared_error") return Loss::kSquaredError;
  throw UsageError(concat(
      "loss '", name, "' is unknown: use binary_cross_entropy, cross_entropy or squared_error"));
}

Batch find(const Records& records, const std::optional<Ids>& ids) {
  Batch batch;
  if (ids) {
    records.find({ids->data(), static_cast<std::size_t>(ids->size())}, batch);
  } else {
    records.find_all(batch);
  }
  return batch;
}

Mlp make(const std::vector<std::tuple<int, int, bool, std::string>>& layers,
         const std::string& loss, int threads, const std::string& isa) {
  std::vector<Layer> chain;
  for (const auto& [inputs, outputs, bias, activation] : layers) {
    chain.push_back({inputs, outputs, bias, activation_of(activation)});
  }
  return Mlp(chain, loss_of(loss), threads, isa_of(isa));
}

std::size_t clipped_sum(Mlp& mlp, std::uintptr_t parameters, const Records& records,
                        const std::optional<Ids>& ids, const HeldClipRule& rule,
                        std::uintptr_t total, std::uintptr_t losses, std::uintptr_t norms,
                        bool accumulate) {
  const py::gil_scoped_release unlocked;
  return mlp.clipped_sum(pointer_to<const float>(parameters), find(records, ids).samples(),
                         rule.rule(), pointer_to<float>(total), pointer_to<float>(losses),
                         pointer_to<double>(norms), accumulate);
}

void gradient_sum(Mlp& mlp, std::uintptr_t parameters, const Records& records,
                  const std::optional<Ids>& ids, std::uintptr_t total, std::uintptr_t losses,
                  bool accumulate) {
  const py::gil_scoped_release unlocked;
  mlp.gradient_sum(pointer_to<const float>(parameters), find(records, ids).samples(),
                   pointer_to<float>(total), pointer_to<float>(losses), accumulate);
}

void evaluate(Mlp& mlp, std::uintptr_t parameters, const Records& records,
              const std::optional<Ids>& ids, std::uintptr_t outputs, std::uintptr_t losses) {
  const py::gil_scoped_release unlocked;
  mlp.evaluate(pointer_to<const float>(parameters), find(records, ids).samples(),
               pointer_to<float>(outputs), pointer_to<float>(losses));
}

}  // namespace

void bind_mlp(py::module_& module) {
  py::class_<Mlp>(module, "Mlp")
      .def(py::init(&make), py::arg("layers"), py::arg("loss"), py::arg("threads"),
           py::arg("isa") = "auto")
      .def_property_readonly("parameters", &Mlp::parameters)
      .def("clipped_sum", &clipped_sum)
      .def("gradient_sum", &gradient_sum)
      .def("evaluate", &evaluate);
}

}  // namespace dpcomm
