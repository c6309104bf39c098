// What a kernel leaves for the host when a value that only the device knows is wrong; shared by
// host and device.
#pragma once

#include <cstdint>

namespace pykernels {

enum class DeviceErrorKind : uint32_t {
  kNone = 0,
  kGroupOffset = 1,   // group_offsets decrease or pass the end: group, its end, the end of the rows
  kMaskedM = 2,       // masked_m out of range: group, its value, max_m
  kGroupIndex = 3,    // m_indices out of range: row, its value, num_groups
  kReadyTimeout = 4,  // rows that never became ready: counter, rows seen, rows expected
};

/// One record a device, written in one access of 16 bytes. A launch writes its first error; what it
/// concerns has then been left out.
struct alignas(16) DeviceError {
  DeviceErrorKind kind = DeviceErrorKind::kNone;
  uint32_t index = 0;
  int32_t value = 0;
  int32_t limit = 0;
};

}  // namespace pykernels
