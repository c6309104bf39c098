// Tensor maps, grid and parameters of an FP8 GEMM.
#include "gemm/launch.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/math.h"
#include "gemm/choice.h"
#include "gemm/cost.h"
#include "gemm/launch_parts.h"

namespace pykernels::gemm {
namespace {

/// What the kernel relies on when it forms addresses.
void check_arguments(const GemmArguments& arguments) {
  const auto& [a, sfa, b, sfb, d, num_sms, batch_invariant] = arguments;
  PK_CHECK(a.rank == 2 && b.rank == 2, "a and b must be matrices, got ", a.describe(), " and ",
           b.describe());
  const int64_t m = a.sizes[0];
  const int64_t n = b.sizes[0];
  const int64_t k = a.sizes[1];
  const int64_t k_tiles = ceil_div(k, kBlockK);
  constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
  PK_CHECK(m > 0 && n > 0 && m <= kMaxSize && n <= kMaxSize && k <= kMaxSize,
           "m, n and k must be from 1 (k: 0) to ", kMaxSize, ", got ", m, ", ", n, ", ", k);
  check_shape("b", b, {n, k});
  check_shape("sfa", sfa, {m, k_tiles});
  check_shape("sfb", sfb, {ceil_div(n, kBlockK), k_tiles});
  check_shape("d", d, {m, n});
  check_dtypes(a, sfa, b, sfb, d);
}

GemmParams make_params(Device& device, const GemmArguments& arguments, const GemmConfig& config,
                       const GemmSchedule& schedule) {
  GemmParams params{};
  set_common(params, arguments.a, arguments.sfa, arguments.b, arguments.sfb, schedule);
  if (params.num_k_tiles > 0) {
    params.map_a =
        device.encode_tensor_map(operand_fields(arguments.a, config.block_m / schedule.cluster_n));
    params.map_b =
        device.encode_tensor_map(operand_fields(arguments.b, config.block_n / schedule.cluster_m));
  }
  params.m = static_cast<uint32_t>(arguments.a.sizes[0]);
  set_output(params, arguments.d, arguments.d.strides[0]);
  if (!config.swap_ab) {
    params.map_d = device.encode_tensor_map(output_fields(arguments.d, config));
  }
  return params;
}

Launch make_launch(Device& device, const GemmArguments& arguments, const KernelInfo& kernel,
                   const GemmConfig& config, const GemmSchedule& schedule) {
  const int64_t tile_m = int64_t{config.block_m} * schedule.cluster_m;
  const int64_t tile_n = int64_t{config.block_n} * schedule.cluster_n;
  const int64_t num_m = ceil_div(arguments.a.sizes[0], tile_m);
  const int64_t num_n = ceil_div(arguments.b.sizes[0], tile_n);
  // The kernel counts tiles in 32 bits, one step beyond the last one included.
  PK_CHECK(num_m * num_n <= std::numeric_limits<int32_t>::max(), "d must have at most ",
           std::numeric_limits<int32_t>::max(), " tiles of ", tile_m, " x ", tile_n, ", got ",
           num_m, " x ", num_n, "; split the call");
  const int64_t num_clusters =
      count_clusters(device, kernel, schedule, arguments.num_sms, num_m * num_n);
  GemmParams params = make_params(device, arguments, config, schedule);
  params.num_tiles = static_cast<uint32_t>(num_m * num_n);
  params.num_clusters = static_cast<uint32_t>(num_clusters);
  const int64_t band_rows = raster_band(config, schedule, num_clusters, num_m);
  const int64_t rest = num_m % band_rows;
  params.band_tiles = FastDivisor(static_cast<uint32_t>(band_rows * num_n));
  params.band_rows = FastDivisor(static_cast<uint32_t>(band_rows));
  params.last_band_rows = FastDivisor(static_cast<uint32_t>(rest == 0 ? band_rows : rest));

  Launch launch = empty_launch(kernel, schedule, num_clusters);
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
  PK_CHECK(!config.grouped, "kernel ", kernel.name, " is none of family ", kDenseFamily);
  check_schedule(kernel, config, schedule);
  return make_launch(device, arguments, kernel, config, schedule);
}

}  // namespace pykernels::gemm
