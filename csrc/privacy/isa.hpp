#pragma once

#include <string_view>
#include <type_traits>

namespace dpcomm {

// How the CPU kernels are compiled: one source, several widths (lanes.hpp). All give the same bits;
// to choose one is for tests and benchmarks. kScalar is the plain reference.
enum class Isa { kScalar, kGeneric, kAvx2, kAvx512 };

bool supported(Isa isa);  // by this processor
Isa best_isa();           // the widest that is

Isa isa_of(std::string_view name);  // scalar, generic, avx2, avx512, or auto; else UsageError

// f(std::integral_constant<int, lanes>), lanes being how many floats that Isa has in a vector. For
// kernels without a scalar reference of their own.
template <class F>
auto with_lanes(Isa isa, const F& f) {
  switch (isa) {
    case Isa::kAvx512:
      return f(std::integral_constant<int, 16>());
    case Isa::kAvx2:
      return f(std::integral_constant<int, 8>());
    default:
      return f(std::integral_constant<int, 4>());
  }
}

}  // namespace dpcomm
