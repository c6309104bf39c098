// How an array on the device says which rows belong to which group; shared by host and device.
#pragma once

#include <cstdint>

namespace pykernels {

enum class GroupSource : uint32_t {
  kNone = 0,     // no array: all rows, without groups
  kOffsets = 1,  // [num_groups + 1]: group g has the rows from offsets[g] to offsets[g + 1] - 1
  kIndices = 2,  // an index for each row: its group, -1 for none
  kMasked = 3,   // [num_groups]: how many rows of a group's room are its own, from the first on
};

}  // namespace pykernels
