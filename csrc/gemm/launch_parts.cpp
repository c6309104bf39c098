#include "gemm/launch_parts.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/math.h"
#include "gemm/family.h"

namespace pykernels::gemm {
namespace {

TensorMapSwizzle swizzle_of(uint32_t row_bytes) {
  if (row_bytes == 128) return TensorMapSwizzle::k128B;
  return row_bytes == 64 ? TensorMapSwizzle::k64B : TensorMapSwizzle::k32B;
}

/// Boxes of `box_rows` rows of `row_bytes`, swizzled over those: the layout of all shared tiles.
TensorMapFields map_fields(const TensorView& tensor, TensorMapType type, uint32_t box_rows,
                           uint32_t row_bytes, TensorMapL2Promotion l2_promotion) {
  const uint32_t bytes = element_bytes(tensor.dtype);
  TensorMapFields fields;
  fields.type = type;
  fields.rank = static_cast<uint32_t>(tensor.rank);
  fields.address = tensor.address;
  for (int i = 0; i < tensor.rank; ++i) {
    fields.dims[i] = static_cast<uint64_t>(tensor.sizes[tensor.rank - 1 - i]);
    fields.box[i] = 1;
  }
  for (int i = 0; i + 1 < tensor.rank; ++i) {
    fields.strides[i] = static_cast<uint64_t>(tensor.strides[tensor.rank - 2 - i]) * bytes;
  }
  fields.box[0] = row_bytes / bytes;
  fields.box[1] = box_rows;
  fields.swizzle = swizzle_of(row_bytes);
  fields.l2_promotion = l2_promotion;
  return fields;
}

/// The byte stride of scale factors along k as the kernels take it.
uint32_t stride_k_bytes(const char* name, const TensorView& scales) {
  const int64_t stride = scales.strides[scales.rank - 1];
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  PK_CHECK(bytes >= 0 && bytes <= std::numeric_limits<uint32_t>::max(), "the stride of ", name,
           " along k must be less than 2^30 elements, got ", stride);
  return static_cast<uint32_t>(bytes);
}

}  // namespace

void check_schedule(const KernelInfo& kernel, const GemmConfig& config,
                    const GemmSchedule& schedule) {
  const std::vector<GemmSchedule> known = schedules_of(config);
  PK_CHECK(std::find(known.begin(), known.end(), schedule) != known.end(), "kernel ", kernel.name,
           " cannot run clusters of ", schedule.cluster_m, " x ", schedule.cluster_n,
           " CTAs with k split by ", schedule.split_k);
}

void check_dtypes(const TensorView& a, const TensorView& sfa, const TensorView& b,
                  const TensorView& sfb, const TensorView& d) {
  PK_CHECK(a.dtype == DataType::kFloat8E4m3 && b.dtype == DataType::kFloat8E4m3,
           "a and b must be float8_e4m3fn, got ", a.describe(), " and ", b.describe());
  PK_CHECK(sfa.dtype == DataType::kFloat32 && sfb.dtype == DataType::kFloat32,
           "sfa and sfb must be float32, got ", sfa.describe(), " and ", sfb.describe());
  PK_CHECK(d.dtype == DataType::kBfloat16 || d.dtype == DataType::kFloat32,
           "d must be bfloat16 or float32, got ", d.describe());
}

void check_shape(const char* name, const TensorView& tensor, std::initializer_list<int64_t> shape) {
  if (std::equal(shape.begin(), shape.end(), tensor.sizes, tensor.sizes + tensor.rank)) return;
  std::string wanted;
  for (const int64_t size : shape) {
    wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  }
  throw ArgumentError(concat(name, " must be [", wanted, "], got ", tensor.describe()));
}

TensorMapFields operand_fields(const TensorView& operand, uint32_t box_rows) {
  return map_fields(operand, TensorMapType::kUint8, box_rows, kBlockK, TensorMapL2Promotion::k256B);
}

TensorMapFields output_fields(const TensorView& d, const GemmConfig& config) {
  const TensorMapType type =
      d.dtype == DataType::kFloat32 ? TensorMapType::kFloat32 : TensorMapType::kBfloat16;
  return map_fields(d, type, kWarpgroupRows, config.slab_row_bytes(), TensorMapL2Promotion::kNone);
}

int64_t count_clusters(Device& device, const KernelInfo& kernel, const GemmSchedule& schedule,
                       const std::optional<int64_t>& num_sms, int64_t num_tiles) {
  const int64_t cluster = schedule.cluster();
  int64_t max_clusters = device.max_active_clusters(kernel, {schedule.cluster(), 1, 1});
  PK_CHECK(max_clusters > 0, "the device cannot run kernel ", kernel.name, " in clusters of ",
           cluster, " CTAs; take a schedule with fewer");
  if (num_sms) max_clusters = std::min(max_clusters, *num_sms / cluster);
  PK_CHECK(max_clusters > 0, "kernel ", kernel.name, " needs at least ", cluster,
           " SMs, got num_sms = ", num_sms.value_or(0));
  return std::min(max_clusters, num_tiles);
}

void set_common(GemmParams& params, const TensorView& a, const TensorView& sfa, const TensorView& b,
                const TensorView& sfb, const GemmSchedule& schedule) {
  params.sfa = reinterpret_cast<const float*>(sfa.address);
  params.sfb = reinterpret_cast<const float*>(sfb.address);
  params.sfa_stride_m = sfa.strides[sfa.rank - 2];
  params.sfb_stride_n = sfb.strides[sfb.rank - 2];
  params.sfa_stride_k_bytes = stride_k_bytes("sfa", sfa);
  params.sfb_stride_k_bytes = stride_k_bytes("sfb", sfb);
  params.n = static_cast<uint32_t>(b.sizes[b.rank - 2]);
  params.num_k_tiles = static_cast<uint32_t>(ceil_div(a.sizes[a.rank - 1], kBlockK));
  params.schedule = schedule;
  params.cluster = FastDivisor(schedule.cluster());
  params.sharing = FastDivisor(schedule.cluster_n);
  params.split = FastDivisor(schedule.split_k);
}

void set_output(GemmParams& params, const TensorView& d, int64_t row_stride) {
  params.d_is_fp32 = d.dtype == DataType::kFloat32;
  params.d = reinterpret_cast<void*>(d.address);
  params.d_stride_m = row_stride * element_bytes(d.dtype);
}

Launch empty_launch(const KernelInfo& kernel, const GemmSchedule& schedule, int64_t num_clusters) {
  Launch launch;
  launch.kernel = kernel.name;
  launch.grid.x = static_cast<uint32_t>(num_clusters * schedule.cluster());
  launch.block.x = kernel.threads;
  launch.cluster.x = schedule.cluster();
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  return launch;
}

}  // namespace pykernels::gemm
