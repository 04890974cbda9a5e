#include "step.hpp"

#include <string_view>

#include "engine/communicator.hpp"
#include "memory.hpp"
#include "privacy/noise.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// Sums the ranks' buffers; whoever completes an element adds its noise and scales it before it is
// sent on. Where one rank owns each element, its noise is drawn once over all ranks.
// The buffer's first element is element `offset` of the step's.
void private_step(Communicator& communicator, std::uintptr_t data, std::size_t count,
                  const NoiseSpec& spec, float scale, std::string_view algo, int threads,
                  std::size_t offset) {
  Arguments arguments{.data = pointer_to<float>(data),
                      .out = pointer_to<float>(data),
                      .count = count,
                      .dtype = DType::kFloat32,
                      .redop = RedOp::kSum};
  if (!algo.empty()) arguments.algorithm = algorithm_of(algo);
  const auto add = [&](void* done, std::size_t begin, std::size_t length) {
    add_noise(static_cast<float*>(done), length, offset + begin, spec, scale, threads);
  };
  arguments.epilogue = {"noise", add};
  const py::gil_scoped_release unlocked;
  communicator.all_reduce(arguments);
}

}  // namespace

void bind_step(py::module_& module) {
  module.def("private_step", &private_step, py::arg("communicator"), py::arg("data"),
             py::arg("count"), py::arg("spec"), py::arg("scale"), py::arg("algo") = "",
             py::arg("threads") = 1, py::arg("offset") = 0);
}

}  // namespace dpcomm
