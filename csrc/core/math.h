// Small arithmetic that host and device share.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace pykernels {

/// value / divisor rounded up, of a value that is not negative.
PK_HOST_DEVICE constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

/// Division of integers below 2^31 by one divisor, without the twenty instructions of a division on
/// the device: a multiplication by a reciprocal rounded up (Granlund and Montgomery, "Division by
/// invariant integers using multiplication", 1994).
///
/// With 2^shift the least power of two not below the divisor d, the multiplier is
/// ceil(2^(31 + shift) / d) < 2^32, and its error of less than d / 2^(31 + shift) <= 2^-31 of a
/// quotient stays below the distance to the next integer.
struct FastDivisor {
  uint32_t divisor = 1;
  uint32_t multiplier = 0x80000000;
  uint32_t shift = 0;

  FastDivisor() = default;
  /// Host only. `by`: from 1 to 2^31.
  explicit constexpr FastDivisor(uint32_t by) : divisor(by) {
    while (shift < 31 && (uint64_t{1} << shift) < by) ++shift;
    const uint64_t power = uint64_t{1} << (31 + shift);
    multiplier = static_cast<uint32_t>((power + by - 1) / by);
  }

  /// dividend / divisor, of a dividend below 2^31.
  PK_HOST_DEVICE constexpr uint32_t divide(uint32_t dividend) const {
    const uint64_t product = static_cast<uint64_t>(dividend) * multiplier;
    return static_cast<uint32_t>(product >> 31) >> shift;
  }
};

}  // namespace pykernels
