#include "cuda.hpp"

#include <pybind11/stl.h>

#include "base/cuda.hpp"
#include "base/device_cuda.hpp"
#include "clip.hpp"
#include "memory.hpp"
#include "privacy/clip_cuda.hpp"
#include "privacy/noise_cuda.hpp"
#include "privacy/update_cuda.hpp"
#include "update.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// Where a kernel runs: the index of its device, and the address of a stream, 0 for the default one.
struct Place {
  int device;
  std::uintptr_t stream;

  Stream handle() const { return reinterpret_cast<Stream>(stream); }
};

Place place_of(std::pair<int, std::uintptr_t> place) { return {place.first, place.second}; }

}  // namespace

void bind_cuda(py::module_& module) {
  using PyPlace = std::pair<int, std::uintptr_t>;

  module.def(
      "device_count",
      [] {
        int count = 0;
        return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
      },
      "How many GPUs there are; 0 also where there is no driver.");
  module.def(
      "combine",
      [](PyPlace at, const std::string& dtype, const std::string& op,
         const std::vector<std::uintptr_t>& parts, std::uintptr_t out, std::size_t count) {
        const Place place = place_of(at);
        const DeviceGuard guard(place.device);
        std::vector<const void*> pointers;
        for (const std::uintptr_t part : parts) pointers.push_back(pointer_to<const void>(part));
        combine(dtype_of(dtype), redop_of(op), pointers, pointer_to<void>(out), count,
                place.handle());
      },
      py::arg("place"), py::arg("dtype"), py::arg("op"), py::arg("parts"), py::arg("out"),
      py::arg("count"));
  module.def(
      "multiply",
      [](PyPlace at, const std::string& dtype, std::uintptr_t out, std::uintptr_t data,
         std::size_t count, double factor) {
        const Place place = place_of(at);
        const DeviceGuard guard(place.device);
        multiply(dtype_of(dtype), pointer_to<void>(out), pointer_to<const void>(data), count,
                 factor, place.handle());
      },
      py::arg("place"), py::arg("dtype"), py::arg("out"), py::arg("data"), py::arg("count"),
      py::arg("factor"));
  module.def(
      "divide",
      [](PyPlace at, const std::string& dtype, std::uintptr_t data, std::size_t count,
         double divisor) {
        const Place place = place_of(at);
        const DeviceGuard guard(place.device);
        divide(dtype_of(dtype), pointer_to<void>(data), count, divisor, place.handle());
      },
      py::arg("place"), py::arg("dtype"), py::arg("data"), py::arg("count"), py::arg("divisor"));
  module.def(
      "add_noise",
      [](PyPlace at, std::uintptr_t data, std::size_t count, std::uint64_t offset,
         const NoiseSpec& spec, float scale, std::uintptr_t counter) {
        const Place place = place_of(at);
        const DeviceGuard guard(place.device);
        add_noise(pointer_to<float>(data), count, offset, spec, scale, place.handle(),
                  pointer_to<const std::uint64_t>(counter));
      },
      py::arg("place"), py::arg("data"), py::arg("count"), py::arg("offset"), py::arg("spec"),
      py::arg("scale") = 1.0f, py::arg("counter") = 0);

  module.def(
      "update",
      [](PyPlace at, std::uintptr_t gradient, std::uintptr_t parameters,
         const std::vector<std::uintptr_t>& states, std::size_t count, std::uint64_t offset,
         const NoiseSpec& spec, float scale, const Optimizer& optimizer, std::uintptr_t counter,
         std::uintptr_t adam_corrections) {
        const Place place = place_of(at);
        const DeviceGuard guard(place.device);
        update(
            shard_of(gradient, parameters, states, optimizer), count, offset, spec, scale,
            optimizer, place.handle(),
            {pointer_to<const std::uint64_t>(counter), pointer_to<const float>(adam_corrections)});
      },
      py::arg("place"), py::arg("gradient"), py::arg("parameters"), py::arg("states"),
      py::arg("count"), py::arg("offset"), py::arg("spec"), py::arg("scale"), py::arg("optimizer"),
      py::arg("counter") = 0, py::arg("adam_corrections") = 0);

  // Of this module alone: _cuda and the tests' module may live in one process.
  py::class_<ClipPlan>(module, "ClipPlan", py::module_local())
      .def_readonly("teams", &ClipPlan::teams)
      .def_readonly("members", &ClipPlan::members)
      .def_readonly("group_rows", &ClipPlan::group_rows)
      .def_readonly("workspace_bytes", &ClipPlan::workspace_bytes);
  module.def(
      "clip_plan",
      [](int device, const PyBlocks& blocks, std::size_t rows, const std::string& dtype) {
        const DeviceGuard guard(device);
        return clip_plan(grads_of(blocks), rows, dtype_of(dtype));
      },
      py::arg("device"), py::arg("blocks"), py::arg("rows"), py::arg("dtype"));
  module.def(
      "clip_sum",
      [](PyPlace at, const ClipPlan& plan, const PyBlocks& blocks, std::size_t rows,
         const std::string& dtype, double clip_norm, double stability, std::uintptr_t total,
         std::uintptr_t norms, std::uintptr_t nonfinite, std::uintptr_t workspace,
         std::uintptr_t sample_norms) {
        const Place place = place_of(at);
        const DeviceGuard guard(place.device);
        clip_sum(plan, grads_of(blocks), rows, dtype_of(dtype), clip_norm, stability,
                 pointer_to<float>(total), pointer_to<double>(norms),
                 pointer_to<const double>(sample_norms), pointer_to<std::int64_t>(nonfinite),
                 pointer_to<void>(workspace), place.handle());
      },
      py::arg("place"), py::arg("plan"), py::arg("blocks"), py::arg("rows"), py::arg("dtype"),
      py::arg("clip_norm"), py::arg("stability"), py::arg("total"), py::arg("norms"),
      py::arg("nonfinite"), py::arg("workspace"), py::arg("sample_norms") = 0);
}

}  // namespace dpcomm
