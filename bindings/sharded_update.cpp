#include "sharded_update.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "memory.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

void copy(float* to, const float* from, std::size_t count) {
  std::memcpy(to, from, count * sizeof(float));
}

}  // namespace

ShardedUpdate::ShardedUpdate(Communicator& communicator, float* gradient, float* parameters,
                             std::size_t count, int states, const Settings& settings)
    : communicator_(communicator),
      gradient_(gradient),
      parameters_(parameters),
      count_(count),
      settings_(settings) {
  if (!settings_.algorithm) {
    settings_.algorithm =
        communicator.choose(Operation::kAllReduce, {.count = count, .dtype = DType::kFloat32});
  }
  for (int state = 0; state < states; ++state) states_[state] = pages();
  if (!alone()) owned_ = pages();
  adopt();
}

ShardedUpdate::Pages ShardedUpdate::pages() const {
  Pages made(static_cast<float*>(std::calloc(std::max<std::size_t>(count_, 1), sizeof(float))));
  if (!made) throw std::bad_alloc();
  return made;
}

void ShardedUpdate::step(const NoiseSpec& noise, const Optimizer& optimizer) {
  const auto update_some = [&](const float* sum, float* parameters, std::size_t offset,
                               std::size_t count) {
    UpdateShard shard{sum, parameters + offset, {}};
    for (int k = 0; k < 2; ++k) {
      if (states_[k]) shard.states[k] = states_[k].get() + offset;
    }
    update(shard, count, offset, noise, settings_.scale, optimizer, settings_.threads);
  };
  if (alone()) return update_some(gradient_, parameters_, 0, count_);
  each_completed("update", [&](void* done, std::size_t offset, std::size_t count) {
    auto* const sum = static_cast<float*>(done);
    update_some(sum, owned_.get(), offset, count);
    copy(sum, owned_.get() + offset, count);
  });
}

// Calls `work` for the elements that this rank completes; what it leaves there is in all ranks'
// parameters afterwards.
void ShardedUpdate::each_completed(std::string_view purpose, const Epilogue::Work& work) {
  communicator_.all_reduce({.data = gradient_,
                            .out = parameters_,
                            .count = count_,
                            .dtype = DType::kFloat32,
                            .redop = RedOp::kSum,
                            .algorithm = settings_.algorithm,
                            .epilogue = {purpose, work}});
}

void ShardedUpdate::hand_out_parameters() {
  each_completed("share", [&](void* done, std::size_t offset, std::size_t count) {
    copy(static_cast<float*>(done), owned_.get() + offset, count);
  });
}

void ShardedUpdate::gather(int state, float* out) {
  if (alone()) return copy(out, states_[state].get(), count_);
  each_completed("gather", [&](void* done, std::size_t offset, std::size_t count) {
    copy(static_cast<float*>(done), states_[state].get() + offset, count);
  });
  copy(out, parameters_, count_);
  hand_out_parameters();
}

void ShardedUpdate::restore(int state, const float* from) {
  if (alone()) return copy(states_[state].get(), from, count_);
  each_completed("load", [&](void* done, std::size_t offset, std::size_t count) {
    copy(states_[state].get() + offset, from + offset, count);
    copy(static_cast<float*>(done), owned_.get() + offset, count);
  });
}

void ShardedUpdate::adopt() {
  if (alone()) return;
  const std::vector<float> whole(parameters_, parameters_ + count_);
  each_completed("adopt", [&](void* done, std::size_t offset, std::size_t count) {
    copy(owned_.get() + offset, whole.data() + offset, count);
    copy(static_cast<float*>(done), whole.data() + offset, count);
  });
}

void bind_sharded_update(py::module_& module) {
  py::class_<ShardedUpdate>(module, "ShardedUpdate")
      .def(py::init([](Communicator& communicator, std::uintptr_t gradient,
                       std::uintptr_t parameters, std::size_t count, int states, float scale,
                       std::string_view algo, int threads) {
             ShardedUpdate::Settings settings{.scale = scale, .algorithm = {}, .threads = threads};
             if (!algo.empty()) settings.algorithm = algorithm_of(algo);
             const py::gil_scoped_release unlocked;
             return std::make_unique<ShardedUpdate>(communicator, pointer_to<float>(gradient),
                                                    pointer_to<float>(parameters), count, states,
                                                    settings);
           }),
           py::arg("communicator"), py::arg("gradient"), py::arg("parameters"), py::arg("count"),
           py::arg("states"), py::arg("scale"), py::arg("algo"), py::arg("threads"),
           py::keep_alive<1, 2>())
      .def("step", &ShardedUpdate::step, py::arg("noise"), py::arg("optimizer"),
           py::call_guard<py::gil_scoped_release>())
      .def(
          "gather",
          [](ShardedUpdate& self, int state, std::uintptr_t out) {
            const py::gil_scoped_release unlocked;
            self.gather(state, pointer_to<float>(out));
          },
          py::arg("state"), py::arg("out"))
      .def(
          "restore",
          [](ShardedUpdate& self, int state, std::uintptr_t from) {
            const py::gil_scoped_release unlocked;
            self.restore(state, pointer_to<const float>(from));
          },
          py::arg("state"), py::arg("from_"))
      .def("adopt", &ShardedUpdate::adopt, py::call_guard<py::gil_scoped_release>());
}

}  // namespace dpcomm
