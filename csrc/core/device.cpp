// What all devices do alike with the errors that kernels leave.
#include "core/device.h"

#include "core/check.h"

namespace pykernels {
namespace {

std::string describe_group_offset(const DeviceError& error) {
  constexpr const char* kConsequence = "; the rows of this group were left untouched";
  if (error.value < 0 && error.limit == 0) {
    return concat("group_offsets of group ", error.index, " must be at least 0, got ", error.value,
                  kConsequence);
  }
  const bool decreases = error.value < error.limit;
  return concat("group_offsets of group ", error.index, " end at ", error.value, ", must be at ",
                decreases ? "least " : "most ", error.limit,
                decreases ? ": offsets may not decrease" : ": offsets may not pass the last row",
                kConsequence);
}

}  // namespace

MemoryRange error_memory(Device& device) {
  return {device.error_record(), sizeof(DeviceError), "errors"};
}

std::string describe(const DeviceError& error) {
  switch (error.kind) {
    case DeviceErrorKind::kNone:
      return "no error";
    case DeviceErrorKind::kGroupOffset:
      return describe_group_offset(error);
    case DeviceErrorKind::kMaskedM:
      return concat("masked_m of group ", error.index, " must be from 0 to ", error.limit, ", got ",
                    error.value, "; the rows of this group were left untouched");
    case DeviceErrorKind::kGroupIndex:
      return concat("m_indices of row ", error.index, " must be from -1 to ",
                    int64_t{error.limit} - 1, ", got ", error.value,
                    "; this row was left untouched");
    case DeviceErrorKind::kReadyTimeout:
      return concat("the rows of ready counter ", error.index, " never came: ", error.value, " of ",
                    error.limit,
                    " after the timeout; its tiles and all later ones of that SM were left "
                    "untouched");
  }
  return concat("a kernel left an error of unknown kind ", static_cast<uint32_t>(error.kind), " (",
                error.index, ", ", error.value, ", ", error.limit, ")");
}

}  // namespace pykernels
