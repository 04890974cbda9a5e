#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "model/mlp.hpp"

namespace dpcomm {

// Where the rows of a batch lie.
struct Batch {
  std::vector<const float*> rows, targets;

  Samples samples() const { return {rows.size(), rows.data(), targets.data()}; }
};

// Records in one or several arrays, numbered through; finds the rows of a batch.
class Records {
 public:
  struct Segment {
    std::uintptr_t inputs;
    std::size_t input_stride;  // in elements
    std::uintptr_t targets;    // may be null
    std::size_t target_stride;
    std::int64_t count;
  };

  explicit Records(const std::vector<std::tuple<std::uintptr_t, std::size_t, std::uintptr_t,
                                                std::size_t, std::int64_t>>& segments);

  std::int64_t count() const { return ends_.empty() ? 0 : ends_.back(); }

  // UsageError for an id that no record has.
  void find(std::span<const std::int64_t> ids, Batch& batch) const;
  void find_all(Batch& batch) const;

 private:
  template <class IdAt>
  void find(std::size_t n, IdAt id_at, Batch& batch) const;

  std::vector<Segment> segments_;
  std::vector<std::int64_t> ends_;  // one past the id of each segment's last record
};

void bind_records(pybind11::module_& module);

}  // namespace dpcomm
