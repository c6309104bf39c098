// Tensor maps, grid and parameters of an FP8 GEMM.
#include "gemm/launch.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "gemm/choice.h"
#include "gemm/cost.h"

namespace pykernels::gemm {
namespace {

constexpr int64_t kScaleBlock = 128;

int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

void check_matrix(const char* name, const TensorView& tensor, int64_t rows, int64_t columns) {
  PK_CHECK(tensor.rank == 2 && tensor.sizes[0] == rows && tensor.sizes[1] == columns, name,
           " must be [", rows, ", ", columns, "], got ", tensor.describe());
}

/// What the kernel relies on when it forms addresses.
void check_arguments(const GemmArguments& arguments) {
  const auto& [a, sfa, b, sfb, d, num_sms, batch_invariant] = arguments;
  PK_CHECK(a.rank == 2 && b.rank == 2, "a and b must be matrices, got ", a.describe(), " and ",
           b.describe());
  const int64_t m = a.sizes[0];
  const int64_t n = b.sizes[0];
  const int64_t k = a.sizes[1];
  const int64_t k_tiles = ceil_div(k, kScaleBlock);
  constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
  PK_CHECK(m > 0 && n > 0 && m <= kMaxSize && n <= kMaxSize && k <= kMaxSize,
           "m, n and k must be from 1 (k: 0) to ", kMaxSize, ", got ", m, ", ", n, ", ", k);
  check_matrix("b", b, n, k);
  check_matrix("sfa", sfa, m, k_tiles);
  check_matrix("sfb", sfb, ceil_div(n, kScaleBlock), k_tiles);
  check_matrix("d", d, m, n);
  PK_CHECK(a.dtype == DataType::kFloat8E4m3 && b.dtype == DataType::kFloat8E4m3,
           "a and b must be float8_e4m3fn, got ", a.describe(), " and ", b.describe());
  PK_CHECK(sfa.dtype == DataType::kFloat32 && sfb.dtype == DataType::kFloat32,
           "sfa and sfb must be float32, got ", sfa.describe(), " and ", sfb.describe());
  PK_CHECK(d.dtype == DataType::kBfloat16 || d.dtype == DataType::kFloat32,
           "d must be bfloat16 or float32, got ", d.describe());
}

void check_schedule(const KernelInfo& kernel, const GemmConfig& config,
                    const GemmSchedule& schedule) {
  const std::vector<GemmSchedule> known = schedules_of(config);
  PK_CHECK(std::find(known.begin(), known.end(), schedule) != known.end(), "kernel ", kernel.name,
           " cannot run clusters of ", schedule.cluster_m, " x ", schedule.cluster_n,
           " CTAs with k split by ", schedule.split_k);
}

TensorMapSwizzle swizzle_of(uint32_t row_bytes) {
  if (row_bytes == 128) return TensorMapSwizzle::k128B;
  return row_bytes == 64 ? TensorMapSwizzle::k64B : TensorMapSwizzle::k32B;
}

/// Boxes of `box_rows` rows of `row_bytes`, swizzled over those: the layout of all shared tiles.
TensorMap encode_map(Device& device, const TensorView& matrix, TensorMapType type,
                     uint32_t box_rows, uint32_t row_bytes, TensorMapL2Promotion l2_promotion) {
  const uint32_t bytes = element_bytes(matrix.dtype);
  TensorMapFields fields;
  fields.type = type;
  fields.rank = 2;
  fields.address = matrix.address;
  fields.dims[0] = static_cast<uint64_t>(matrix.sizes[1]);
  fields.dims[1] = static_cast<uint64_t>(matrix.sizes[0]);
  fields.strides[0] = static_cast<uint64_t>(matrix.strides[0]) * bytes;
  fields.box[0] = row_bytes / bytes;
  fields.box[1] = box_rows;
  fields.swizzle = swizzle_of(row_bytes);
  fields.l2_promotion = l2_promotion;
  return device.encode_tensor_map(fields);
}

/// The byte stride of scale factors along k as the kernels take it.
uint32_t stride_k_bytes(const char* name, const TensorView& scales) {
  const int64_t bytes = scales.strides[1] * static_cast<int64_t>(sizeof(float));
  PK_CHECK(bytes >= 0 && bytes <= std::numeric_limits<uint32_t>::max(), "the stride of ", name,
           " along k must be less than 2^30 elements, got ", scales.strides[1]);
  return static_cast<uint32_t>(bytes);
}

GemmParams make_params(Device& device, const GemmArguments& arguments, const GemmConfig& config,
                       const GemmSchedule& schedule) {
  GemmParams params{};
  const int64_t k = arguments.a.sizes[1];
  if (k > 0) {
    params.map_a =
        encode_map(device, arguments.a, TensorMapType::kUint8, config.block_m / schedule.cluster_n,
                   kBlockK, TensorMapL2Promotion::k256B);
    params.map_b =
        encode_map(device, arguments.b, TensorMapType::kUint8, config.block_n / schedule.cluster_m,
                   kBlockK, TensorMapL2Promotion::k256B);
  }
  params.d_is_fp32 = arguments.d.dtype == DataType::kFloat32;
  if (config.swap_ab) {
    params.d = reinterpret_cast<void*>(arguments.d.address);
    params.d_stride_m = arguments.d.strides[0] * element_bytes(arguments.d.dtype);
  } else {
    params.map_d = encode_map(device, arguments.d,
                              params.d_is_fp32 ? TensorMapType::kFloat32 : TensorMapType::kBfloat16,
                              kWarpgroupRows, config.slab_row_bytes(), TensorMapL2Promotion::kNone);
  }
  params.sfa = reinterpret_cast<const float*>(arguments.sfa.address);
  params.sfb = reinterpret_cast<const float*>(arguments.sfb.address);
  params.sfa_stride_m = arguments.sfa.strides[0];
  params.sfb_stride_n = arguments.sfb.strides[0];
  params.sfa_stride_k_bytes = stride_k_bytes("sfa", arguments.sfa);
  params.sfb_stride_k_bytes = stride_k_bytes("sfb", arguments.sfb);
  params.m = static_cast<uint32_t>(arguments.a.sizes[0]);
  params.n = static_cast<uint32_t>(arguments.b.sizes[0]);
  params.num_k_tiles = static_cast<uint32_t>(ceil_div(k, kBlockK));
  params.schedule = schedule;
  params.cluster = FastDivisor(schedule.cluster());
  params.sharing = FastDivisor(schedule.cluster_n);
  params.split = FastDivisor(schedule.split_k);
  return params;
}

Launch make_launch(Device& device, const GemmArguments& arguments, const KernelInfo& kernel,
                   const GemmConfig& config, const GemmSchedule& schedule) {
  Launch launch;
  launch.kernel = kernel.name;
  launch.block.x = kernel.threads;
  launch.cluster.x = schedule.cluster();
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;

  const int64_t tile_m = int64_t{config.block_m} * schedule.cluster_m;
  const int64_t tile_n = int64_t{config.block_n} * schedule.cluster_n;
  const int64_t num_m = ceil_div(arguments.a.sizes[0], tile_m);
  const int64_t num_n = ceil_div(arguments.b.sizes[0], tile_n);
  // The kernel counts tiles in 32 bits, one step beyond the last one included.
  PK_CHECK(num_m * num_n <= std::numeric_limits<int32_t>::max(), "d must have at most ",
           std::numeric_limits<int32_t>::max(), " tiles of ", tile_m, " x ", tile_n, ", got ",
           num_m, " x ", num_n, "; split the call");
  const int64_t cluster = schedule.cluster();
  int64_t max_clusters = device.max_active_clusters(kernel, launch.cluster);
  PK_CHECK(max_clusters > 0, "the device cannot run kernel ", kernel.name, " in clusters of ",
           cluster, " CTAs; take a schedule with fewer");
  if (arguments.num_sms) max_clusters = std::min(max_clusters, *arguments.num_sms / cluster);
  PK_CHECK(max_clusters > 0, "kernel ", kernel.name, " needs at least ", cluster,
           " SMs, got num_sms = ", arguments.num_sms.value_or(0));
  const int64_t num_clusters = std::min(max_clusters, num_m * num_n);
  launch.grid.x = static_cast<uint32_t>(num_clusters * cluster);

  GemmParams params = make_params(device, arguments, config, schedule);
  params.num_tiles = static_cast<uint32_t>(num_m * num_n);
  params.num_clusters = static_cast<uint32_t>(num_clusters);
  const int64_t band_rows = raster_band(config, schedule, num_clusters, num_m);
  const int64_t rest = num_m % band_rows;
  params.band_tiles = FastDivisor(static_cast<uint32_t>(band_rows * num_n));
  params.band_rows = FastDivisor(static_cast<uint32_t>(band_rows));
  params.last_band_rows = FastDivisor(static_cast<uint32_t>(rest == 0 ? band_rows : rest));
  launch.arguments = argument_bytes(params);
  launch.memory = {arguments.a.memory_range("a"), arguments.sfa.memory_range("sfa"),
                   arguments.b.memory_range("b"), arguments.sfb.memory_range("sfb"),
                   arguments.d.memory_range("d")};
  return launch;
}

}  // namespace

Launch make_fp8_gemm_nt_launch(Device& device, const GemmArguments& arguments) {
  check_arguments(arguments);
  GemmProblem problem;
  problem.m = arguments.a.sizes[0];
  problem.n = arguments.b.sizes[0];
  problem.k = arguments.a.sizes[1];
  problem.d_bytes = element_bytes(arguments.d.dtype);
  problem.batch_invariant = arguments.batch_invariant;
  if (arguments.num_sms) {
    problem.num_sms = static_cast<int>(std::min<int64_t>(*arguments.num_sms, INT32_MAX));
  }
  const GemmCandidate choice = choose_kernel(device, problem);
  return make_launch(device, arguments, *choice.kernel, choice.config, choice.schedule);
}

Launch make_fp8_gemm_nt_launch(Device& device, const GemmArguments& arguments,
                               const KernelInfo& kernel, const GemmSchedule& schedule) {
  check_arguments(arguments);
  const GemmConfig config = config_of(kernel);
  check_schedule(kernel, config, schedule);
  return make_launch(device, arguments, kernel, config, schedule);
}

}  // namespace pykernels::gemm
