#include "errors.hpp"

#include "base/error.hpp"

namespace py = pybind11;

namespace dpcomm {

void bind_errors(py::module_& module) {
  auto& base = py::register_exception<Error>(module, "Error", PyExc_RuntimeError);
  const auto bases = [&](PyObject* builtin) {
    return py::make_tuple(base, py::reinterpret_borrow<py::object>(builtin));
  };
  // A user may catch either ours or the builtin that fits.
  py::register_exception<UsageError>(module, "UsageError", bases(PyExc_ValueError));
  py::register_exception<EnvironmentError>(module, "EnvironmentError", bases(PyExc_OSError));
  py::register_exception<MismatchError>(module, "MismatchError", base);
  py::register_exception<LostPeerError>(module, "LostPeerError", base);
  py::register_exception<TimeoutError>(module, "TimeoutError", bases(PyExc_TimeoutError));
}

}  // namespace dpcomm
