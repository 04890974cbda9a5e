#pragma once

#include <memory>

#include "base/device.hpp"

namespace dpcomm {

// The GPU of this index, whatever device is current.
std::shared_ptr<Device> gpu(int index);

}  // namespace dpcomm
