// From tensors to the launch of a grouped FP8 GEMM.
#pragma once

#include <cstdint>
#include <optional>

#include "core/device.h"
#include "core/launch.h"
#include "core/registry.h"
#include "core/tensor_view.h"
#include "gemm/config.h"

namespace pykernels::gemm {

/// Counters that a launch shares with the kernels beside it, one for kCounterRows rows.
struct GroupedCounters {
  std::optional<TensorView> ready;  // uint32 [ceil(m / 128)], or [num_groups, ceil(max_m / 128)]
  std::optional<TensorView> done;   // likewise
  bool system_scope = false;        // the other side is another GPU
  uint64_t ready_timeout_ns = 0;
};

struct GroupedGemmArguments {
  TensorView a;    // [m, k] e4m3; with kMasked [num_groups, max_m, k]
  TensorView sfa;  // [m, ceil(k / 128)] FP32; [num_groups, max_m, ceil(k / 128)]
  TensorView b;    // [num_groups, n, k] e4m3
  TensorView sfb;  // [num_groups, ceil(n / 128), ceil(k / 128)] FP32
  TensorView d;    // [m, n] BF16 or FP32; [num_groups, max_m, n]
  GroupSource source = GroupSource::kOffsets;
  TensorView groups;  // int32, as the source says
  GroupedCounters counters;
  std::optional<int64_t> num_sms;
  std::optional<int64_t> expected_m;  // rows of a group, to choose the kernel by
};

/// The launch of the chosen kernel of family grouped_fp8_gemm_nt. The arguments have been checked
/// (pykernels/checks.py) and neither m, num_groups nor n is 0; what would let the kernel touch
/// foreign memory is checked again and throws ArgumentError.
Launch make_grouped_launch(Device& device, const GroupedGemmArguments& arguments);

/// The same with the kernel and its schedule given, as tests and benches need.
Launch make_grouped_launch(Device& device, const GroupedGemmArguments& arguments,
                           const KernelInfo& kernel, const GemmSchedule& schedule);

}  // namespace pykernels::gemm
