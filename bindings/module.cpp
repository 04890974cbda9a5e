#include <pybind11/pybind11.h>

#include "communicator.hpp"
#include "errors.hpp"
#include "schedule.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of dpcomm.";
  dpcomm::bind_errors(module);
  dpcomm::bind_schedule(module);
  dpcomm::bind_communicator(module);
}
