// What a kernel leaves for the host when a value that only the device knows is wrong; shared by
// host and device.
#pragma once

#include <cstdint>

namespace pykernels {

enum class DeviceErrorKind : uint32_t {
  kNone = 0,
  kGroupOffset = 1,   // where a group's rows end: group, its end, the least or the greatest allowed
  kMaskedM = 2,       // masked_m is not from 0 to max_m: group, its value, max_m
  kGroupIndex = 3,    // m_indices is not from -1 to num_groups - 1: row, its value, num_groups
  kReadyTimeout = 4,  // rows that never became ready: counter, rows seen, rows expected
  kOffsetRange = 5,   // first and last offset are no range of rows: group_offsets as kGroupOffset
  kCacheSeqlen = 6,   // cache_seqlens is not from 0 to what the table holds: request, value, most
  kPageIndex = 7,     // a page of block_table does not exist: request, page, num_pages
  kStalePlan = 8,     // the plan was made for another length: request, its length, the planned one
  kSlot = 9,          // slot_mapping is not from -1 to the last slot: token, slot (or the nearest
                      // value of 32 bits), num_slots
};

/// kStalePlan: the plan does not have the request at all.
inline constexpr int32_t kNeverPlanned = -1;

/// One record a device (Device::error_record), written in one access of 16 bytes. A launch writes
/// its first error; what it concerns has then been left out. The members are those named above, in
/// that order; describe() in core/device.h puts them into words.
struct alignas(16) DeviceError {
  DeviceErrorKind kind = DeviceErrorKind::kNone;
  uint32_t index = 0;
  int32_t value = 0;
  int32_t limit = 0;
};

}  // namespace pykernels
