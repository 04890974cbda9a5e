#pragma once

#include "base/dtype.hpp"
#include "base/host_device.hpp"

// The reductions of one element, alike on the host and on a GPU.

namespace dpcomm {

// What the elements of a storage type are combined in.
template <class T>
struct Wide {
  using type = T;
  DPCOMM_HD static T load(T value) { return value; }
  DPCOMM_HD static T store(T value) { return value; }
};
template <>
struct Wide<BFloat16> {
  using type = float;
  DPCOMM_HD static float load(BFloat16 value) { return to_float(value); }
  DPCOMM_HD static BFloat16 store(float value) { return to_bfloat16(value); }
};
template <>
struct Wide<Float16> {
  using type = float;
  DPCOMM_HD static float load(Float16 value) { return to_float(value); }
  DPCOMM_HD static Float16 store(float value) { return to_float16(value); }
};

struct Add {
  template <class W>
  DPCOMM_HD static W apply(W a, W b) {
    return static_cast<W>(a + b);
  }
};
struct Max {
  template <class W>
  DPCOMM_HD static W apply(W a, W b) {
    return a > b || a != a ? a : b;
  }
};
struct Min {
  template <class W>
  DPCOMM_HD static W apply(W a, W b) {
    return a < b || a != a ? a : b;
  }
};

}  // namespace dpcomm
