#include "transport/mpi.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

// DPCOMM_MPI_MODULE is _mpi, or _mpi_abi where it is built against MPI's standard ABI. Either needs
// dpcomm._core to be imported first: it brings the Transport class and the errors.
PYBIND11_MODULE(DPCOMM_MPI_MODULE, module) {
  namespace mpi = dpcomm::mpi;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  module.doc() = "The MPI transport of dpcomm.";
  module.def("start", &mpi::start, unlocked(), "Initialises MPI if nobody has.");
  module.def("finish", &mpi::finish, unlocked(), "Finalises MPI.");
  module.def("running", &mpi::running);
  module.def("rank", &mpi::rank);
  module.def("size", &mpi::size);
  module.def("hosts", &mpi::hosts, unlocked(),
             "The host of each rank, as the first rank on it; or DPCOMM_HOSTS. Collective.");
  module.def("broadcast", &mpi::broadcast, py::arg("text"), unlocked(),
             "Rank 0's text, everywhere.");
  module.def("library", &mpi::library, "Name and version of the MPI library.");
  module.def("abort", &mpi::abort, py::arg("code"), unlocked(), "Ends every process of the job.");
  module.def("transport", &mpi::transport, py::arg("timeout"), unlocked(),
             "A transport over a duplicate of MPI_COMM_WORLD. Collective.");
}
