// Which values the scale factor of an FP8 block may have; shared by host and device.
#pragma once

#include <cstdint>

namespace pykernels {

enum class ScaleFormat : uint32_t { kFp32 = 0, kUe8m0 = 1 };

}  // namespace pykernels
