#include "native_step.hpp"

#include <pybind11/stl.h>

#include <cmath>

#include "base/error.hpp"
#include "key.hpp"
#include "model/mlp.hpp"
#include "privacy/sampling.hpp"
#include "records.hpp"
#include "sharded_update.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// Draws the batch of the next step while this one computes: it depends on nothing but its number.
class NativeStep {
 public:
  NativeStep(ShardedUpdate& update, Mlp& mlp, const Records& records, const py::bytes& sampling_key,
             double sample_rate, std::int64_t begin, std::int64_t end,
             std::optional<double> clip_norm)
      : update_(update),
        mlp_(mlp),
        records_(records),
        sampling_key_(key_of(sampling_key)),
        sample_rate_(sample_rate),
        begin_(begin),
        end_(end),
        clip_norm_(clip_norm) {
    DPCOMM_CHECK(0 <= begin && begin <= end && end <= records.count(), UsageError, "records ",
                 begin, " to ", end, ": there are ", records.count());
    draw(0);
  }

  // The batch of index `batch`, the noise of index `step`. Returns the samples left out for not
  // being finite.
  std::size_t operator()(std::uint64_t batch, std::uint64_t step, const Optimizer& optimizer) {
    if (drawn_ != batch) draw(batch);
    std::swap(present_, next_);
    const Beside beside{1, [&](std::size_t) { draw(batch + 1); }};
    const Samples samples = present_.samples();
    std::size_t nonfinite = 0;
    if (clip_norm_) {
      nonfinite = mlp_.clipped_sum(update_.parameters(), samples, *clip_norm_, update_.gradient(),
                                   nullptr, nullptr, false, beside);
    } else {
      mlp_.gradient_sum(update_.parameters(), samples, update_.gradient(), nullptr, false, beside);
    }
    update_.step(step, optimizer);
    return nonfinite;
  }

 private:
  void draw(std::uint64_t batch) {
    records_.find(poisson_sample(sampling_key_, batch, sample_rate_, begin_, end_), next_);
    drawn_ = batch;
  }

  ShardedUpdate& update_;
  Mlp& mlp_;
  const Records& records_;
  NoiseKey sampling_key_;
  double sample_rate_;
  std::int64_t begin_, end_;  // this rank's records
  std::optional<double> clip_norm_;
  Batch present_, next_;
  std::uint64_t drawn_ = 0;  // what is in next_
};

}  // namespace

void bind_native_step(py::module_& module) {
  py::class_<NativeStep>(module, "NativeStep")
      .def(py::init<ShardedUpdate&, Mlp&, const Records&, const py::bytes&, double, std::int64_t,
                    std::int64_t, std::optional<double>>(),
           py::arg("update"), py::arg("mlp"), py::arg("records"), py::arg("sampling_key"),
           py::arg("sample_rate"), py::arg("begin"), py::arg("end"), py::arg("clip_norm"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>())
      .def("__call__", &NativeStep::operator(), py::arg("batch"), py::arg("step"),
           py::arg("optimizer"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace dpcomm
