#pragma once

#include <string_view>

namespace dpcomm {

// How the CPU kernels are compiled: one source, several widths (lanes.hpp). All give the same bits;
// to choose one is for tests and benchmarks. kScalar is the plain reference.
enum class Isa { kScalar, kGeneric, kAvx2, kAvx512 };

bool supported(Isa isa);  // by this processor
Isa best_isa();           // the widest that is

Isa isa_of(std::string_view name);  // scalar, generic, avx2, avx512, or auto; else UsageError

}  // namespace dpcomm
