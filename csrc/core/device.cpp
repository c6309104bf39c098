// What all devices do alike with the errors that kernels leave.
#include "core/device.h"

#include <limits>

#include "core/check.h"

namespace pykernels {
namespace {

/// `consequence`: what has been left out.
std::string describe_group_offset(const DeviceError& error, const char* consequence) {
  if (error.value < 0 && error.limit == 0) {
    return concat("group_offsets of group ", error.index, " must be at least 0, got ", error.value,
                  consequence);
  }
  const bool decreases = error.value < error.limit;
  return concat("group_offsets of group ", error.index, " end at ", error.value, ", must be at ",
                decreases ? "least " : "most ", error.limit,
                decreases ? ": offsets may not decrease" : ": offsets may not pass the last row",
                consequence);
}

/// Of a value that stands for all beyond it, as the nearest one that the record holds.
const char* beyond_32_bits(int32_t value) {
  if (value == std::numeric_limits<int32_t>::max()) return " or more";
  return value == std::numeric_limits<int32_t>::min() ? " or less" : "";
}

}  // namespace

void Device::run_together(const std::vector<Launch>& launches) {
  PK_CHECK(launches.size() == 1, "a stream runs one launch at a time, got ", launches.size(),
           " to run together; launches that wait for one another need a stream each");
  run(launches.front());
}

void Device::run_streams(const std::vector<StreamedLaunch>& launches) {
  PK_CHECK(launches.empty(), "only the emulator runs launches of several streams at once, got ",
           launches.size());
}

MemoryRange error_memory(Device& device) {
  return {device.error_record(), sizeof(DeviceError), "errors"};
}

std::string describe(const DeviceError& error) {
  switch (error.kind) {
    case DeviceErrorKind::kNone:
      return "no error";
    case DeviceErrorKind::kGroupOffset:
      return describe_group_offset(error, "; the rows of this group were left untouched");
    case DeviceErrorKind::kOffsetRange:
      return describe_group_offset(error, "; all rows were left untouched");
    case DeviceErrorKind::kMaskedM:
      return concat("masked_m of group ", error.index, " must be from 0 to ", error.limit, ", got ",
                    error.value, "; the rows of this group were left untouched");
    case DeviceErrorKind::kGroupIndex:
      return concat("m_indices of row ", error.index, " must be ",
                    error.limit == std::numeric_limits<int32_t>::max()
                        ? std::string("at least -1")
                        : concat("from -1 to ", error.limit - 1),
                    ", got ", error.value, "; this row was left untouched");
    case DeviceErrorKind::kReadyTimeout:
      return concat("the rows of ready counter ", error.index, " never came: ", error.value, " of ",
                    error.limit,
                    " after the timeout; its tiles and all later ones of that SM were left "
                    "untouched; let the kernel that fills them run beside this one (num_sms, "
                    "another stream), or raise ready_timeout");
    case DeviceErrorKind::kCacheSeqlen:
      return concat("cache_seqlens of request ", error.index, " must be from 0 to ", error.limit,
                    ", what its row of block_table reaches, got ", error.value,
                    "; out and lse of this request are NaN");
    case DeviceErrorKind::kPageIndex:
      return concat("block_table of request ", error.index, " must name ",
                    error.limit > 0 ? concat("pages from 0 to ", error.limit - 1)
                                    : std::string("no page, since the cache has none"),
                    ", got ", error.value, "; out and lse of this request are NaN");
    case DeviceErrorKind::kStalePlan:
      if (error.limit == kNeverPlanned) {
        return concat("the plan was not updated for request ", error.index,
                      "; call mla_update_plan with the cache_seqlens of the whole batch; out and "
                      "lse of this request are NaN");
      }
      return concat("the plan was updated for cache_seqlens of ", error.limit, " in request ",
                    error.index, ", got ", error.value,
                    "; call mla_update_plan whenever the lengths change; out and lse of this "
                    "request are NaN");
    case DeviceErrorKind::kSlot:
      return concat("slot_mapping of token ", error.index, " must be from -1 to ", error.limit - 1,
                    ", got ", error.value, beyond_32_bits(error.value),
                    "; this token was left out");
  }
  return concat("a kernel left an error of unknown kind ", static_cast<uint32_t>(error.kind), " (",
                error.index, ", ", error.value, ", ", error.limit, ")");
}

}  // namespace pykernels
