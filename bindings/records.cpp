#include "records.hpp"

#include <pybind11/stl.h>

#include <algorithm>

#include "base/error.hpp"
#include "memory.hpp"

namespace py = pybind11;

namespace dpcomm {

Records::Records(const std::vector<std::tuple<std::uintptr_t, std::size_t, std::uintptr_t,
                                              std::size_t, std::int64_t>>& segments) {
  std::int64_t end = 0;
  for (const auto& [inputs, input_stride, targets, target_stride, count] : segments) {
    segments_.push_back({inputs, input_stride, targets, target_stride, count});
    ends_.push_back(end += count);
  }
}

void Records::find(std::span<const std::int64_t> ids, Batch& batch) const {
  find(ids.size(), [&](std::size_t i) { return ids[i]; }, batch);
}

void Records::find_all(Batch& batch) const {
  find(static_cast<std::size_t>(count()), [](std::size_t i) { return i; }, batch);
}

// Looks up the segment only when an id leaves the last one's: rarely, where ids ascend.
template <class IdAt>
void Records::find(std::size_t n, IdAt id_at, Batch& batch) const {
  batch.rows.resize(n);
  batch.targets.resize(n);
  std::size_t at = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto record = static_cast<std::int64_t>(id_at(i));
    DPCOMM_CHECK(0 <= record && record < count(), UsageError, "record id ", record, " at position ",
                 i, ": there are ", count(), " records");
    if (record < begin || record >= end) {
      at = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), record) -
                                    ends_.begin());
      end = ends_[at];
      begin = end - segments_[at].count;
    }
    const Segment& segment = segments_[at];
    const auto row = static_cast<std::size_t>(record - begin);
    batch.rows[i] = pointer_to<const float>(segment.inputs) + row * segment.input_stride;
    batch.targets[i] = pointer_to<const float>(segment.targets) + row * segment.target_stride;
  }
}

void bind_records(py::module_& module) {
  py::class_<Records>(module, "Records")
      .def(py::init<const std::vector<std::tuple<std::uintptr_t, std::size_t, std::uintptr_t,
                                                 std::size_t, std::int64_t>>&>(),
           py::arg("segments"))
      .def("__len__", &Records::count);
}

}  // namespace dpcomm
