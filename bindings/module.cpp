#include <pybind11/pybind11.h>

#include "clip.hpp"
#include "clip_rule.hpp"
#include "communicator.hpp"
#include "errors.hpp"
#include "gather.hpp"
#include "ghost.hpp"
#include "memory.hpp"
#include "mlp.hpp"
#include "native_step.hpp"
#include "noise.hpp"
#include "records.hpp"
#include "sampling.hpp"
#include "schedule.hpp"
#include "sharded_update.hpp"
#include "step.hpp"
#include "update.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of dpcomm.";
  dpcomm::bind_errors(module);
  dpcomm::bind_clip_rule(module);
  dpcomm::bind_clip(module);
  dpcomm::bind_gather(module);
  dpcomm::bind_ghost(module);
  dpcomm::bind_records(module);
  dpcomm::bind_mlp(module);
  dpcomm::bind_noise(module);
  dpcomm::bind_sampling(module);
  dpcomm::bind_memory(module);
  dpcomm::bind_schedule(module);
  dpcomm::bind_communicator(module);
  dpcomm::bind_step(module);
  dpcomm::bind_update(module);
  dpcomm::bind_sharded_update(module);
  dpcomm::bind_native_step(module);
}
