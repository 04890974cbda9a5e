#include <pybind11/pybind11.h>

#include "clip.hpp"
#include "errors.hpp"
#include "noise.hpp"
#include "sampling.hpp"
#include "schedule.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of dpcomm.";
  dpcomm::bind_errors(module);
  dpcomm::bind_clip(module);
  dpcomm::bind_noise(module);
  dpcomm::bind_sampling(module);
  dpcomm::bind_schedule(module);
}
