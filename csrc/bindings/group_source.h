// How Python names a GroupSource: after the argument that holds the array.
#pragma once

#include <optional>
#include <string>

#include "core/check.h"
#include "core/group_source.h"

namespace pykernels::bindings {

inline GroupSource group_source(const std::optional<std::string>& name) {
  if (!name) return GroupSource::kNone;
  if (*name == "group_offsets") return GroupSource::kOffsets;
  if (*name == "m_indices") return GroupSource::kIndices;
  PK_CHECK(*name == "masked_m", "source must be group_offsets, m_indices or masked_m, got ", *name);
  return GroupSource::kMasked;
}

}  // namespace pykernels::bindings
