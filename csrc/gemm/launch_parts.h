// What the launches of dense and of grouped GEMMs have in common.
#pragma once

#include <cstdint>
#include <optional>

#include "core/device.h"
#include "core/launch.h"
#include "core/registry.h"
#include "core/tensor_map.h"
#include "core/tensor_view.h"
#include "gemm/config.h"

namespace pykernels::gemm {

/// Throws ArgumentError unless the kernel can run the schedule.
void check_schedule(const KernelInfo& kernel, const GemmConfig& config,
                    const GemmSchedule& schedule);

/// Throws ArgumentError unless the operands are e4m3, the scale factors FP32, the output BF16 or
/// FP32.
void check_dtypes(const TensorView& a, const TensorView& sfa, const TensorView& b,
                  const TensorView& sfb, const TensorView& d);

/// Throws ArgumentError unless the tensor has this shape.
void check_shape(const char* name, const TensorView& tensor, std::initializer_list<int64_t> shape);

/// The map of an operand, [rows, k] or [groups, rows, k], with boxes of so many rows and 128 bytes,
/// swizzled over those.
TensorMapFields operand_fields(const TensorView& operand, uint32_t box_rows);

/// The map of an output, likewise, with boxes of a warpgroup's rows and a slab's columns.
TensorMapFields output_fields(const TensorView& d, const GemmConfig& config);

/// Clusters of the grid: what the device can hold together and `num_sms` allow, at most one a tile.
/// Throws ArgumentError if there are none.
int64_t count_clusters(Device& device, const KernelInfo& kernel, const GemmSchedule& schedule,
                       const std::optional<int64_t>& num_sms, int64_t num_tiles);

/// Scale factors, sizes beside m, and the schedule.
void set_common(GemmParams& params, const TensorView& a, const TensorView& sfa, const TensorView& b,
                const TensorView& sfb, const GemmSchedule& schedule);

/// The output's type and where it lies; the stride between rows is in elements.
void set_output(GemmParams& params, const TensorView& d, int64_t row_stride);

/// A launch without arguments and memory.
Launch empty_launch(const KernelInfo& kernel, const GemmSchedule& schedule, int64_t num_clusters);

}  // namespace pykernels::gemm
