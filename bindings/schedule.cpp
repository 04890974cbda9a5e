#include "schedule.hpp"

#include <pybind11/stl.h>

#include <vector>

#include "schedule/check.hpp"
#include "schedule/cost.hpp"
#include "schedule/pipeline.hpp"
#include "schedule/schedule.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

std::vector<Schedule> every_rank(const std::string& operation, const std::string& algorithm,
                                 int size, int root, int chunks, const std::vector<int>& hosts) {
  std::vector<Schedule> ranks;
  for (int rank = 0; rank < size; ++rank) {
    if (operation == "all_reduce") {
      ranks.push_back(all_reduce(algorithm_of(algorithm), rank, size, hosts));
    } else if (operation == "reduce_scatter") {
      ranks.push_back(reduce_scatter(algorithm_of(algorithm), rank, size));
    } else if (operation == "all_gather") {
      ranks.push_back(all_gather(algorithm_of(algorithm), rank, size));
    } else if (operation == "broadcast") {
      ranks.push_back(broadcast(rank, size, root));
    } else if (operation == "reduce") {
      ranks.push_back(reduce(rank, size, root));
    } else {
      throw std::invalid_argument("operation '" + operation + "' has no schedule");
    }
    ranks.back() = pipelined(ranks.back(), chunks);
  }
  return ranks;
}

std::vector<std::string> algorithms() {
  std::vector<std::string> names;
  for (Algorithm algorithm : kAlgorithms) names.emplace_back(name_of(algorithm));
  return names;
}

}  // namespace

void bind_schedule(py::module_& module) {
  py::class_<Blocks>(module, "Blocks")
      .def(py::init<int, int>(), py::arg("begin"), py::arg("end"))
      .def_readwrite("begin", &Blocks::begin)
      .def_readwrite("end", &Blocks::end);
  py::enum_<Combine>(module, "Combine").value("add", Combine::kAdd).value("copy", Combine::kCopy);
  py::class_<Send>(module, "Send")
      .def(py::init<int, Blocks>(), py::arg("peer"), py::arg("blocks"))
      .def_readwrite("peer", &Send::peer)
      .def_readwrite("blocks", &Send::blocks);
  py::class_<Receive>(module, "Receive")
      .def(py::init<int, Blocks, Combine>(), py::arg("peer"), py::arg("blocks"), py::arg("combine"))
      .def_readwrite("peer", &Receive::peer)
      .def_readwrite("blocks", &Receive::blocks)
      .def_readwrite("combine", &Receive::combine);
  py::class_<Round>(module, "Round")
      .def(py::init<>())
      .def_readwrite("sends", &Round::sends)
      .def_readwrite("receives", &Round::receives)
      .def_readwrite("completes", &Round::completes);
  py::class_<Schedule>(module, "Schedule")
      .def_readonly("rank", &Schedule::rank)
      .def_readonly("size", &Schedule::size)
      .def_readwrite("blocks", &Schedule::blocks)
      .def_readwrite("rounds", &Schedule::rounds);
  py::enum_<Goal>(module, "Goal")
      .value("all_reduce", Goal::kAllReduce)
      .value("reduce_scatter", Goal::kReduceScatter)
      .value("all_gather", Goal::kAllGather)
      .value("broadcast", Goal::kBroadcast)
      .value("reduce", Goal::kReduce);
  py::class_<Cost>(module, "Cost", "What a schedule costs on its critical path.")
      .def_readonly("rounds", &Cost::rounds)
      .def_readonly("messages", &Cost::messages)
      .def_readonly("bytes", &Cost::bytes)
      .def_readonly("additions", &Cost::additions)
      .def(
          "seconds",
          [](const Cost& cost, double alpha, double beta, double gamma) {
            return seconds(cost, {alpha, beta, gamma});
          },
          py::arg("alpha"), py::arg("beta"), py::arg("gamma"));

  module.def("algorithms", &algorithms, "The names of the all-reduce schedules.");
  module.def(
      "schedules", &every_rank, py::arg("operation"), py::arg("algorithm"), py::arg("size"),
      py::arg("root") = 0, py::arg("chunks") = 1, py::arg("hosts") = std::vector<int>{},
      "The schedules of ranks 0 to size-1, pipelined; hosts: of each rank, [] is all on one.");
  module.def(
      "chunks_for",
      [](const std::string& algorithm, std::size_t bytes) {
        return chunks_for(algorithm_of(algorithm), bytes);
      },
      py::arg("algorithm"), py::arg("bytes"), "In how many parts a buffer is pipelined.");
  module.def(
      "adds_in_order_of_ranks",
      [](const std::string& algorithm) { return adds_in_order_of_ranks(algorithm_of(algorithm)); },
      py::arg("algorithm"),
      "Whether all sums are in the order of ranks, the same bits for all such.");
  module.def(
      "check_schedules",
      [](const std::vector<Schedule>& ranks, Goal goal, int root) {
        return check(ranks, goal, root);
      },
      py::arg("ranks"), py::arg("goal"), py::arg("root") = 0,
      "What is wrong with the schedules; an empty string if nothing is.");
  module.def(
      "schedule_cost",
      [](const std::vector<Schedule>& ranks, double bytes) { return cost(ranks, bytes); },
      py::arg("ranks"), py::arg("bytes"));
}

}  // namespace dpcomm
