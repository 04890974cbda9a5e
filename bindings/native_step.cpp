#include "native_step.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "base/error.hpp"
#include "clip_rule.hpp"
#include "key.hpp"
#include "model/mlp.hpp"
#include "privacy/sampling.hpp"
#include "records.hpp"
#include "sharded_update.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// What a step saw of its rank's batch: how many samples, how many within the rule's first norm, how
// many that were left out for not being finite.
struct Seen {
  std::size_t samples;
  std::size_t within;
  std::size_t nonfinite;
};

// Draws the batch of the next step while this one computes: it depends on nothing but its number.
class NativeStep {
 public:
  NativeStep(ShardedUpdate& update, Mlp& mlp, const Records& records, const py::bytes& sampling_key,
             double sample_rate, std::int64_t begin, std::int64_t end)
      : update_(update),
        mlp_(mlp),
        records_(records),
        sampling_key_(key_of(sampling_key)),
        sample_rate_(sample_rate),
        begin_(begin),
        end_(end) {
    DPCOMM_CHECK(0 <= begin && begin <= end && end <= records.count(), UsageError, "records ",
                 begin, " to ", end, ": there are ", records.count());
    draw(0);
  }

  // The batch of index `batch`; without a rule nothing is clipped, and norms are none of those
  // seen.
  Seen operator()(std::uint64_t batch, const NoiseSpec& noise, const Optimizer& optimizer,
                  const std::optional<HeldClipRule>& rule) {
    if (drawn_ != batch) draw(batch);
    drawn_.reset();  // after an error too the present batch is not taken for the next
    std::swap(present_, next_);
    const Beside beside{1, [&](std::size_t) { draw(batch + 1); }};
    const Samples samples = present_.samples();
    Seen seen{samples.count, 0, 0};
    if (rule) {
      norms_.resize(samples.count);
      seen.nonfinite = mlp_.clipped_sum(update_.parameters(), samples, rule->rule(),
                                        update_.gradient(), nullptr, norms_.data(), false, beside);
      seen.within = static_cast<std::size_t>(std::count_if(
          norms_.begin(), norms_.end(), [&](double norm) { return norm <= rule->norms[0]; }));
    } else {
      mlp_.gradient_sum(update_.parameters(), samples, update_.gradient(), nullptr, false, beside);
    }
    update_.step(noise, optimizer);
    return seen;
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
  Batch present_, next_;
  std::vector<double> norms_;
  std::optional<std::uint64_t> drawn_;  // what is in next_
};

}  // namespace

void bind_native_step(py::module_& module) {
  py::class_<NativeStep>(module, "NativeStep")
      .def(py::init<ShardedUpdate&, Mlp&, const Records&, const py::bytes&, double, std::int64_t,
                    std::int64_t>(),
           py::arg("update"), py::arg("mlp"), py::arg("records"), py::arg("sampling_key"),
           py::arg("sample_rate"), py::arg("begin"), py::arg("end"), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>(), py::keep_alive<1, 4>())
      .def(
          "__call__",
          [](NativeStep& self, std::uint64_t batch, const NoiseSpec& noise,
             const Optimizer& optimizer, const std::optional<HeldClipRule>& rule) {
            const auto seen = [&] {
              const py::gil_scoped_release unlocked;
              return self(batch, noise, optimizer, rule);
            }();
            return std::tuple(seen.samples, seen.within, seen.nonfinite);
          },
          py::arg("batch"), py::arg("noise"), py::arg("optimizer"), py::arg("rule") = py::none());
}

}  // namespace dpcomm
