#include "mlp.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "base/error.hpp"
#include "memory.hpp"
#include "model/mlp.hpp"

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

// Records in one or several arrays, numbered through; finds the rows of a batch.
class Records {
 public:
  struct Segment {
    std::uintptr_t inputs;
    std::size_t input_stride;  // in elements
    std::uintptr_t targets;    // may be null
    std::size_t target_stride;
    std::int64_t count;
    std::int64_t end;  // one past the global id of the last record
  };

  explicit Records(const std::vector<std::tuple<std::uintptr_t, std::size_t, std::uintptr_t,
                                                std::size_t, std::int64_t>>& segments) {
    std::int64_t end = 0;
    for (const auto& [inputs, input_stride, targets, target_stride, count] : segments) {
      end += count;
      segments_.push_back({inputs, input_stride, targets, target_stride, count, end});
    }
  }

  std::int64_t count() const { return segments_.empty() ? 0 : segments_.back().end; }

  // The pointers stay valid until the next call.
  Samples find(const std::optional<Ids>& ids) {
    const auto n = static_cast<std::size_t>(ids ? ids->size() : count());
    const std::int64_t* id = ids ? ids->data() : nullptr;
    rows_.resize(n);
    targets_.resize(n);
    auto segment = segments_.begin();
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t record = id ? id[i] : static_cast<std::int64_t>(i);
      DPCOMM_CHECK(0 <= record && record < count(), UsageError, "record id ", record,
                   " at position ", i, ": there are ", count(), " records");
      if (record < segment->end - segment->count || record >= segment->end) {
        segment = std::upper_bound(segments_.begin(), segments_.end(), record,
                                   [](std::int64_t at, const Segment& s) { return at < s.end; });
      }
      const auto at = static_cast<std::size_t>(record - (segment->end - segment->count));
      rows_[i] = pointer_to<const float>(segment->inputs) + at * segment->input_stride;
      targets_[i] = pointer_to<const float>(segment->targets) + at * segment->target_stride;
    }
    return {n, rows_.data(), targets_.data()};
  }

 private:
  std::vector<Segment> segments_;
  std::vector<const float*> rows_, targets_;
};

Mlp make(const std::vector<std::tuple<int, int, bool, std::string>>& layers,
         const std::string& loss, int threads, const std::string& isa) {
  std::vector<Layer> chain;
  for (const auto& [inputs, outputs, bias, activation] : layers) {
    chain.push_back({inputs, outputs, bias, activation_of(activation)});
  }
  return Mlp(std::move(chain), loss_of(loss), threads, isa_of(isa));
}

std::size_t clipped_sum(Mlp& mlp, std::uintptr_t parameters, Records& records,
                        const std::optional<Ids>& ids, double clip_norm, std::uintptr_t total,
                        std::uintptr_t losses, std::uintptr_t norms, bool accumulate) {
  const py::gil_scoped_release unlocked;
  return mlp.clipped_sum(pointer_to<const float>(parameters), records.find(ids), clip_norm,
                         pointer_to<float>(total), pointer_to<float>(losses),
                         pointer_to<double>(norms), accumulate);
}

void gradient_sum(Mlp& mlp, std::uintptr_t parameters, Records& records,
                  const std::optional<Ids>& ids, std::uintptr_t total, std::uintptr_t losses,
                  bool accumulate) {
  const py::gil_scoped_release unlocked;
  mlp.gradient_sum(pointer_to<const float>(parameters), records.find(ids), pointer_to<float>(total),
                   pointer_to<float>(losses), accumulate);
}

void evaluate(Mlp& mlp, std::uintptr_t parameters, Records& records, const std::optional<Ids>& ids,
              std::uintptr_t outputs, std::uintptr_t losses) {
  const py::gil_scoped_release unlocked;
  mlp.evaluate(pointer_to<const float>(parameters), records.find(ids), pointer_to<float>(outputs),
               pointer_to<float>(losses));
}

}  // namespace

void bind_mlp(py::module_& module) {
  py::class_<Records>(module, "Records")
      .def(py::init<const std::vector<std::tuple<std::uintptr_t, std::size_t, std::uintptr_t,
                                                 std::size_t, std::int64_t>>&>(),
           py::arg("segments"))
      .def("__len__", &Records::count);
  py::class_<Mlp>(module, "Mlp")
      .def(py::init(&make), py::arg("layers"), py::arg("loss"), py::arg("threads"),
           py::arg("isa") = "auto")
      .def_property_readonly("parameters", &Mlp::parameters)
      .def("clipped_sum", &clipped_sum)
      .def("gradient_sum", &gradient_sum)
      .def("evaluate", &evaluate);
}

}  // namespace dpcomm
