#include "privacy/isa.hpp"

#include "base/error.hpp"

namespace dpcomm {

bool supported(Isa isa) {
#ifdef __x86_64__
  switch (isa) {
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  // No flags were given to the compiler, so each width runs: on the vectors that there are.
  static_cast<void>(isa);
  return true;
#endif
}

Isa best_isa() {
  static const Isa best = supported(Isa::kAvx512) ? Isa::kAvx512
                          : supported(Isa::kAvx2) ? Isa::kAvx2
                                                  : Isa::kGeneric;
  return best;
}

Isa isa_of(std::string_view name) {
  const auto checked = [&](Isa isa) {
    DPCOMM_CHECK(supported(isa), UsageError, "isa '", name, "' is not of this processor: use auto");
    return isa;
  };
  if (name == "auto") return best_isa();
  if (name == "scalar") return Isa::kScalar;
  if (name == "generic") return Isa::kGeneric;
  if (name == "avx2") return checked(Isa::kAvx2);
  if (name == "avx512") return checked(Isa::kAvx512);
  throw UsageError(
      concat("isa '", name, "' is unknown: use auto, scalar, generic, avx2 or avx512"));
}

}  // namespace dpcomm
