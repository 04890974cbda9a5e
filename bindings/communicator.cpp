#include "communicator.hpp"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstring>
#include <optional>

#include "base/env.hpp"
#include "base/log.hpp"
#include "engine/communicator.hpp"
#include "transport/nccl.hpp"
#include "transport/routed.hpp"
#include "transport/shm.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

// Ctrl-C must end a wait inside the core: Python only notes the signal.
void raise_pending_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Registered memory. Keeps the transport, whose segment it lies in.
class Memory {
 public:
  Memory(std::shared_ptr<Transport> transport, std::size_t bytes)
      : transport_(std::move(transport)),
        data_(transport_->shared_memory()->allocate(bytes)),
        bytes_(bytes) {
    DPCOMM_CHECK(
        data_, EnvironmentError, "rank ", transport_->rank(), ": no ", bytes,
        " bytes of shared memory are left, of the host's memory or of this rank's share of "
        "4 TiB: free buffers of comm.empty()");
  }
  ~Memory() { transport_->shared_memory()->release(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Transport> transport_;
  void* data_;
  std::size_t bytes_;
};

Arguments arguments(std::uintptr_t data, std::uintptr_t out, std::size_t count,
                    std::string_view dtype, std::string_view op, std::string_view algo = "",
                    int root = 0, double scale = 1, std::optional<std::uintptr_t> stream = {}) {
  Arguments made{.data = reinterpret_cast<const void*>(data),
                 .out = reinterpret_cast<void*>(out),
                 .count = count,
                 .dtype = dtype_of(dtype),
                 .redop = redop_of(op),
                 .root = root,
                 .scale = scale};
  if (!algo.empty()) made.algorithm = algorithm_of(algo);
  if (stream) made.stream = reinterpret_cast<Stream>(*stream);
  return made;
}

// The operations that have a choice of algorithms.
Operation tunable(const std::string& name) {
  for (Operation operation :
       {Operation::kAllReduce, Operation::kReduceScatter, Operation::kAllGather}) {
    if (name_of(operation) == name) return operation;
  }
  throw UsageError(concat("operation '", name,
                          "' has no choice of algorithms: use all_reduce, "
                          "reduce_scatter or all_gather"));
}

// One signature for every collective with data: pointers as integers, elements, names.
template <void (Communicator::*collective)(const Arguments&)>
void bind_collective(py::class_<Communicator>& communicator, const char* name) {
  communicator.def(
      name,
      [](Communicator& self, std::uintptr_t data, std::uintptr_t out, std::size_t count,
         std::string_view dtype, std::string_view op, std::string_view algo, int root, double scale,
         std::optional<std::uintptr_t> stream) {
        const Arguments made = arguments(data, out, count, dtype, op, algo, root, scale, stream);
        const py::gil_scoped_release unlocked;
        (self.*collective)(made);
      },
      py::arg("data"), py::arg("out"), py::arg("count"), py::arg("dtype"), py::arg("op") = "sum",
      py::arg("algo") = "", py::arg("root") = 0, py::arg("scale") = 1.0,
      py::arg("stream") = py::none());
}

}  // namespace

void bind_communicator(py::module_& module) {
  py::class_<Transport, std::shared_ptr<Transport>>(module, "Transport",
                                                    "How ranks reach each other.")
      .def_property_readonly("rank", &Transport::rank)
      .def_property_readonly("size", &Transport::size)
      .def_property_readonly("name", &Transport::name);

  py::class_<Device, std::shared_ptr<Device>>(module, "Device",
                                              "Memory of one kind, and who adds it up.");
  module.def("host_device", &host_device, "The memory of the CPU.");
  py::class_<nccl::Library>(module, "NcclLibrary", "NCCL, opened at run time.")
      .def(py::init(&nccl::Library::open), py::arg("path"),
           "EnvironmentError where it is missing or too old. DPCOMM_NCCL goes before `path`.")
      .def_readonly("version", &nccl::Library::version, "23004 is 2.30.4.");

  py::class_<Memory, std::shared_ptr<Memory>>(module, "Memory", py::buffer_protocol(),
                                              "Bytes that the peers see, for as long as it lives.")
      .def_buffer([](Memory& memory) {
        return py::buffer_info(static_cast<std::uint8_t*>(memory.data()),
                               static_cast<py::ssize_t>(memory.bytes()));
      });

  py::class_<Communicator> communicator(module, "Communicator", "See dpcomm.comm.Communicator.");
  communicator
      .def(py::init([](std::shared_ptr<Transport> transport, std::vector<int> hosts) {
             transport->on_wait(raise_pending_signals);
             return std::make_unique<Communicator>(std::move(transport), std::move(hosts));
           }),
           py::arg("transport"), py::arg("hosts") = std::vector<int>{})
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly("transport",
                             [](Communicator& self) { return self.transport()->name(); })
      .def_property_readonly("hosts", &Communicator::hosts, "The host of each rank.")
      .def_property_readonly("deterministic", &Communicator::deterministic)
      .def("set_deterministic", &Communicator::set_deterministic)
      .def(
          "tune",
          [](Communicator& self, const std::string& operation, std::string_view dtype,
             const std::vector<std::pair<std::size_t, std::string>>& choices) {
            std::vector<Choice> made;
            for (const auto& [up_to, algo] : choices) made.push_back({up_to, algorithm_of(algo)});
            self.tune(tunable(operation), dtype_of(dtype), std::move(made));
          },
          py::arg("operation"), py::arg("dtype"), py::arg("choices"),
          "Which algorithm up to how many bytes, rising; beyond, and with none, the default.")
      .def(
          "untuned",
          [](Communicator& self, const std::string& operation, std::size_t bytes) {
            return std::string(name_of(self.untuned(tunable(operation), bytes)));
          },
          py::arg("operation"), py::arg("bytes"),
          "The algorithm that is taken where none is given and nothing was tuned.")
      .def(
          "all_reduce_with",
          [](Communicator& self, std::uintptr_t data, std::size_t count, std::string_view dtype,
             std::string_view op, std::string_view algo,
             std::function<void(std::uintptr_t, std::size_t, std::size_t)> epilogue,
             std::optional<std::uintptr_t> stream) {
            Arguments made = arguments(data, data, count, dtype, op, algo, 0, 1, stream);
            const auto work = [&](void* done, std::size_t offset, std::size_t length) {
              const py::gil_scoped_acquire gil;
              epilogue(reinterpret_cast<std::uintptr_t>(done), offset, length);
            };
            made.epilogue = {"python", work};
            const py::gil_scoped_release unlocked;
            self.all_reduce(made);
          },
          py::arg("data"), py::arg("count"), py::arg("dtype"), py::arg("op"), py::arg("algo"),
          py::arg("epilogue"), py::arg("stream") = py::none(),
          "all_reduce in place, with an epilogue(pointer, offset, count).")
      .def(
          "open_nccl",
          [](Communicator& self, const nccl::Library& library, std::shared_ptr<Device> device,
             int max_ctas) {
            const py::gil_scoped_release unlocked;
            self.open_gpu([&](std::shared_ptr<Transport> host, const Stamp& stamp) {
              return std::make_shared<NcclTransport>(library, std::move(host), device, max_ctas,
                                                     stamp);
            });
          },
          py::arg("library"), py::arg("device"), py::arg("max_ctas") = 0,
          "From now on memory of `device`, which is current, goes over NCCL. Collective.")

      .def(
          "allocate",
          [](Communicator& self, std::size_t bytes) {
            ShmTransport* const shared = self.transport()->shared_memory();
            return shared && !shared->sees_all() ? std::make_shared<Memory>(self.transport(), bytes)
                                                 : nullptr;
          },
          py::arg("bytes"), "Memory; None where peers see none, or where they see all.")
      .def(
          "time_all_reduce",
          [](Communicator& self, std::uintptr_t data, std::size_t count, std::string_view dtype,
             std::string_view algo, int calls) {
            const Arguments made = arguments(data, data, count, dtype, "sum", algo);
            const py::gil_scoped_release unlocked;
            std::vector<double> seconds;
            for (int call = 0; call < calls; ++call) {
              // Written anew, as a trainer does: its lines are in this core's cache, not the
              // peers'.
              std::memset(made.out, call & 1, count * size_of(made.dtype));
              self.barrier();
              const auto begin = std::chrono::steady_clock::now();
              self.all_reduce(made);
              const auto end = std::chrono::steady_clock::now();
              seconds.push_back(std::chrono::duration<double>(end - begin).count());
            }
            return seconds;
          },
          py::arg("data"), py::arg("count"), py::arg("dtype"), py::arg("algo"), py::arg("calls"),
          "Seconds of each of `calls` sums in place, without Python; the data is overwritten.")
      .def("barrier", &Communicator::barrier, py::call_guard<py::gil_scoped_release>())
      .def("split", &Communicator::split, py::arg("color"), py::arg("key"),
           py::call_guard<py::gil_scoped_release>())
      .def("close", &Communicator::close, py::call_guard<py::gil_scoped_release>())
      .def("abort", &Communicator::abort, py::arg("reason"),
           py::call_guard<py::gil_scoped_release>(),
           "Ends every rank's collectives with this reason.");
  bind_collective<&Communicator::all_reduce>(communicator, "all_reduce");
  bind_collective<&Communicator::reduce_scatter>(communicator, "reduce_scatter");
  bind_collective<&Communicator::all_gather>(communicator, "all_gather");
  bind_collective<&Communicator::all_to_all>(communicator, "all_to_all");
  bind_collective<&Communicator::broadcast>(communicator, "broadcast");
  bind_collective<&Communicator::reduce>(communicator, "reduce");

  module.def("local_transports", &local_transports, py::arg("size"), py::arg("timeout"),
             "Transports for `size` threads of this process.");
  module.def(
      "shm_transport",
      [](std::string key, int rank, int size, double timeout) {
        const py::gil_scoped_release unlocked;
        return shm_transport({key, rank, size, timeout, raise_pending_signals}, timeout);
      },
      py::arg("key"), py::arg("rank"), py::arg("size"), py::arg("timeout"),
      "Meets the other ranks of this host under `key`.");
  module.def("routed_transport", &routed_transport, py::arg("near"), py::arg("far"),
             py::arg("hosts"), "`near` among the ranks of this host, `far` to all others.");
  module.def(
      "seconds_to_add",
      [](std::string_view dtype, std::size_t bytes) {
        const py::gil_scoped_release unlocked;
        const DType type = dtype_of(dtype);
        const std::vector<std::byte> part(bytes);
        std::vector<std::byte> sum(bytes);
        const void* const parts[] = {sum.data(), part.data()};
        void* const out = sum.data();
        const auto begin = std::chrono::steady_clock::now();
        int calls = 0;
        std::chrono::duration<double> seconds{};
        for (; seconds.count() < 2e-3; ++calls) {
          combine(type, RedOp::kSum, parts, {&out, 1}, bytes / size_of(type));
          seconds = std::chrono::steady_clock::now() - begin;
        }
        return seconds.count() / calls;
      },
      py::arg("dtype"), py::arg("bytes"), "Seconds to add `bytes` to as many, on this core.");
  module.def("default_timeout", [] { return env().timeout; }, "DPCOMM_TIMEOUT, or 60: seconds.");
  module.def("set_log_rank", &set_log_rank, py::arg("rank"), py::arg("size"));
}

}  // namespace dpcomm
