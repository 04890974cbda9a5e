#pragma once

#include <functional>

#include "schedule/schedule.hpp"

namespace dpcomm {

// Any rank count for a schedule that wants a power of two (Thakur, Rabenseifner and Gropp,
// "Optimization of collective communication operations in MPICH", IJHPCA 19 (2005)): of the first
// 2r ranks, r = size - 2^k, each odd one adds its buffer to the even one before it, sits out, and
// is handed the result. `core` is called with the rank and size among those that stay.
Schedule folded(int rank, int size, const std::function<Schedule(int rank, int size)>& core);

}  // namespace dpcomm
