// The schedule of a GEMM kernel that Python names.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "core/registry.h"
#include "gemm/config.h"
#include "gemm/family.h"

namespace pykernels::bindings {

/// (cluster_m, cluster_n, split_k)
using ScheduleTuple = std::array<uint32_t, 3>;

/// The schedule given, or the kernel's first.
inline gemm::GemmSchedule schedule_or_first(const KernelInfo& kernel,
                                            const std::optional<ScheduleTuple>& schedule) {
  if (schedule) return {(*schedule)[0], (*schedule)[1], (*schedule)[2]};
  return gemm::schedules_of(gemm::config_of(kernel)).front();
}

}  // namespace pykernels::bindings
