#include "gather.hpp"

#include <pybind11/numpy.h>

#include "data/gather.hpp"
#include "memory.hpp"

namespace py = pybind11;

namespace dpcomm {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// `rows` holds the address of each shard's first row; std::out_of_range becomes IndexError.
void gather_into(const Array<std::uintptr_t>& rows, const Array<std::int64_t>& starts,
                 std::size_t row_bytes, const Array<std::int64_t>& ids, std::uintptr_t out,
                 int threads) {
  const py::gil_scoped_release unlocked;
  const auto count = [](const auto& array) { return static_cast<std::size_t>(array.size()); };
  static_assert(sizeof(std::uintptr_t) == sizeof(const std::byte*));
  gather({{reinterpret_cast<const std::byte* const*>(rows.data()), count(rows)},
          {starts.data(), count(starts)},
          row_bytes},
         {ids.data(), count(ids)}, pointer_to<std::byte>(out), threads);
}

}  // namespace

void bind_gather(py::module_& module) {
  module.def("gather", &gather_into, py::arg("rows"), py::arg("starts"), py::arg("row_bytes"),
             py::arg("ids"), py::arg("out"), py::arg("threads"));
}

}  // namespace dpcomm
