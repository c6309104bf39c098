// Tensor maps, grid and parameters of a grouped FP8 GEMM.
#include "gemm/grouped_launch.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/math.h"
#include "gemm/choice.h"
#include "gemm/cost.h"
#include "gemm/launch_parts.h"

namespace pykernels::gemm {
namespace {

/// Beyond the last row that a kernel counts to, in 32 bits with a sign: one tile more.
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max() - 1024;

/// A done counter counts to kCounterRows n / kCounterColumns, as an int32.
constexpr int64_t kMaxCountedColumns =
    (int64_t{1} << 31) / (int64_t{kCounterRows} / int64_t{kCounterColumns});

struct Sizes {
  int64_t m;  // rows of all groups, with kMasked of one
  int64_t n;
  int64_t k;
  int64_t num_groups;

  explicit Sizes(const GroupedGemmArguments& arguments) {
    const TensorView& a = arguments.a;
    const TensorView& b = arguments.b;
    const int rank = arguments.source == GroupSource::kMasked ? 3 : 2;
    PK_CHECK(a.rank == rank && b.rank == 3, "a must have ", rank, " dimensions and b 3, got ",
             a.describe(), " and ", b.describe());
    m = a.sizes[rank - 2];
    k = a.sizes[rank - 1];
    num_groups = b.sizes[0];
    n = b.sizes[1];
  }
};

/// What the kernel relies on when it forms addresses.
void check_arguments(const GroupedGemmArguments& arguments) {
  const auto& [a, sfa, b, sfb, d, source, groups, counters, num_sms, expected_m] = arguments;
  const auto [m, n, k, num_groups] = Sizes(arguments);
  const int64_t k_tiles = ceil_div(k, kBlockK);
  PK_CHECK(std::min({m, n, num_groups}) > 0 && std::max({m, n, k, num_groups}) <= kMaxRows,
           "m, n, num_groups and k must be from 1 (k: 0) to ", kMaxRows, ", got ", m, ", ", n, ", ",
           num_groups, ", ", k);
  check_shape("b", b, {num_groups, n, k});
  check_shape("sfb", sfb, {num_groups, ceil_div(n, kBlockK), k_tiles});
  if (source == GroupSource::kMasked) {
    check_shape("a", a, {num_groups, m, k});
    check_shape("sfa", sfa, {num_groups, m, k_tiles});
    check_shape("d", d, {num_groups, m, n});
  } else {
    check_shape("sfa", sfa, {m, k_tiles});
    check_shape("d", d, {m, n});
  }
  check_dtypes(a, sfa, b, sfb, d);
  const int64_t num_values = source == GroupSource::kOffsets   ? num_groups + 1
                             : source == GroupSource::kIndices ? m
                                                               : num_groups;
  check_shape("groups", groups, {num_values});
  PK_CHECK(groups.dtype == DataType::kInt32 && (num_values == 1 || groups.strides[0] == 1),
           "groups must be contiguous int32, got ", groups.describe());
  PK_CHECK(!counters.done || n < kMaxCountedColumns, "n must be less than ", kMaxCountedColumns,
           " with done counters, got ", n);
  for (const auto& [name, values] :
       {std::pair{"ready", &counters.ready}, std::pair{"done", &counters.done}}) {
    if (!*values) continue;
    PK_CHECK(source != GroupSource::kIndices, name, " cannot be used with m_indices");
    const int64_t per_group = ceil_div(m, kCounterRows);
    const int64_t wanted = source == GroupSource::kMasked ? num_groups * per_group : per_group;
    PK_CHECK((*values)->num_elements() == wanted && (*values)->dtype == DataType::kInt32 &&
                 (*values)->rank == 1 && (wanted == 1 || (*values)->strides[0] == 1),
             name, " must be ", wanted, " contiguous int32 values, got ", (*values)->describe());
  }
}

/// Rows of a matrix, or of the matrices of all groups as one: every group starts a whole number of
/// rows behind the one before.
struct RowLayout {
  int64_t num_rows;
  int64_t row_stride;  // in elements
  int64_t group_rows;  // from a group to the next; 0 for a matrix

  RowLayout(const char* name, const TensorView& tensor) {
    row_stride = tensor.strides[tensor.rank - 2];
    num_rows = tensor.sizes[tensor.rank - 2];
    group_rows = 0;
    if (tensor.rank == 2) return;
    const int64_t num_groups = tensor.sizes[0];
    const int64_t group_stride = tensor.strides[0];
    if (num_rows == 1 && group_stride > 0) row_stride = group_stride;
    if (num_groups == 1) return;
    if (tensor.num_elements() == 0) {  // k = 0: strides say nothing
      group_rows = num_rows;
    } else {
      PK_CHECK(row_stride > 0 && group_stride >= 0 && group_stride % row_stride == 0,
               "the stride between groups of ", name, " must be a multiple of its row stride, got ",
               tensor.describe());
      group_rows = group_stride / row_stride;
    }
    num_rows += (num_groups - 1) * group_rows;
    PK_CHECK(num_rows <= kMaxRows, name, " must span at most ", kMaxRows, " rows, got ", num_rows);
  }
};

/// The map of all groups' rows in which a box ends with a group: the second dimension is bounded by
/// the number of rows and the third is another dimension of rows. Where a group has r rows ahead of
/// row e, rows (bound - r, e) and so on are its own; the base is moved back by the bound.
TensorMapFields clipped(TensorMapFields fields, const RowLayout& rows) {
  const auto num_rows = static_cast<uint64_t>(rows.num_rows);
  const uint64_t row_bytes = static_cast<uint64_t>(rows.row_stride) * element_bytes(fields.type);
  PK_CHECK(fields.address > num_rows * row_bytes, "a tensor of ", num_rows, " rows of ", row_bytes,
           " bytes cannot lie at address ", fields.address);
  fields.rank = 3;
  fields.address -= num_rows * row_bytes;
  fields.dims[1] = num_rows;
  fields.dims[2] = num_rows + 1;
  fields.strides[0] = fields.strides[1] = row_bytes;
  fields.box[2] = 1;
  return fields;
}

void set_counters(GroupedGemmParams& params, const GroupedGemmArguments& arguments) {
  const GroupedCounters& counters = arguments.counters;
  if (counters.ready) params.ready = reinterpret_cast<const uint32_t*>(counters.ready->address);
  if (counters.done) params.done = reinterpret_cast<uint32_t*>(counters.done->address);
  if (arguments.source == GroupSource::kMasked) {
    params.counters_per_group = static_cast<uint32_t>(ceil_div(arguments.a.sizes[1], kCounterRows));
  }
  params.system_scope = counters.system_scope;
  params.ready_timeout_ns = counters.ready_timeout_ns;
}

GroupedGemmParams make_params(Device& device, const GroupedGemmArguments& arguments,
                              const GemmConfig& config, const GemmSchedule& schedule) {
  GroupedGemmParams params{};
  const RowLayout a_rows("a", arguments.a);
  const RowLayout d_rows("out", arguments.d);
  set_common(params, arguments.a, arguments.sfa, arguments.b, arguments.sfb, schedule);
  if (params.num_k_tiles > 0) {
    params.map_a = device.encode_tensor_map(
        clipped(operand_fields(arguments.a, config.block_m / schedule.cluster_n), a_rows));
    params.map_b =
        device.encode_tensor_map(operand_fields(arguments.b, config.block_n / schedule.cluster_m));
  }
  params.m = static_cast<uint32_t>(a_rows.num_rows);
  set_output(params, arguments.d, d_rows.row_stride);
  if (!config.swap_ab) {
    params.map_d = device.encode_tensor_map(clipped(output_fields(arguments.d, config), d_rows));
  }
  params.groups = reinterpret_cast<const int32_t*>(arguments.groups.address);
  params.source = arguments.source;
  params.num_groups = static_cast<uint32_t>(arguments.b.sizes[0]);
  params.d_rows = static_cast<uint32_t>(d_rows.num_rows);
  params.sfb_group_stride = arguments.sfb.strides[0];
  if (arguments.source == GroupSource::kMasked) {
    params.max_rows = static_cast<uint32_t>(arguments.a.sizes[1]);
    params.a_group_rows = static_cast<uint32_t>(a_rows.group_rows);
    params.d_group_rows = static_cast<uint32_t>(d_rows.group_rows - a_rows.group_rows);
    params.sfa_group_stride = arguments.sfa.strides[0] - a_rows.group_rows * params.sfa_stride_m;
  }
  params.errors = reinterpret_cast<DeviceError*>(device.error_record());
  set_counters(params, arguments);
  return params;
}

/// Cluster tiles along m of all groups, at most: of rows in one piece each group can have one tile
/// that is not full.
int64_t most_tiles_m(const GroupedGemmArguments& arguments, int64_t tile_m) {
  const auto [m, n, k, num_groups] = Sizes(arguments);
  if (arguments.source == GroupSource::kMasked) return num_groups * ceil_div(m, tile_m);
  const int64_t pieces = arguments.source == GroupSource::kIndices ? m : std::min(m, num_groups);
  return (m + pieces * (tile_m - 1)) / tile_m;
}

Launch make_launch(Device& device, const GroupedGemmArguments& arguments, const KernelInfo& kernel,
                   const GemmConfig& config, const GemmSchedule& schedule) {
  PK_CHECK(schedule.cluster() == 1 || !arguments.counters.ready,
           "ready counters need a schedule without clusters, got kernel ", kernel.name,
           " in clusters of ", schedule.cluster(), " CTAs");
  const int64_t tile_m = int64_t{config.block_m} * schedule.cluster_m;
  const int64_t num_n =
      ceil_div(arguments.b.sizes[1], int64_t{config.block_n} * schedule.cluster_n);
  const int64_t num_tiles = most_tiles_m(arguments, tile_m) * num_n;
  PK_CHECK(num_tiles <= std::numeric_limits<int32_t>::max(), "out must have at most ",
           std::numeric_limits<int32_t>::max(), " tiles, can have ", num_tiles, "; split the call");
  const int64_t num_clusters =
      count_clusters(device, kernel, schedule, arguments.num_sms, num_tiles);
  GroupedGemmParams params = make_params(device, arguments, config, schedule);
  params.num_clusters = static_cast<uint32_t>(num_clusters);
  params.num_tiles_n = static_cast<uint32_t>(num_n);
  // A group may have all rows; the kernel takes no more than a group has.
  const int64_t band_rows =
      raster_band(config, schedule, num_clusters, ceil_div(Sizes(arguments).m, tile_m));
  params.band_tiles = FastDivisor(static_cast<uint32_t>(band_rows * num_n));
  params.band_rows = FastDivisor(static_cast<uint32_t>(band_rows));

  Launch launch = empty_launch(kernel, schedule, num_clusters);
  // A launch that waits for rows runs on another stream than the one that fills them.
  launch.programmatic_dependent = !arguments.counters.ready;
  launch.arguments = argument_bytes(params);
  launch.memory = {arguments.a.memory_range("a"),
                   arguments.sfa.memory_range("sfa"),
                   arguments.b.memory_range("b"),
                   arguments.sfb.memory_range("sfb"),
                   arguments.d.memory_range("out"),
                   arguments.groups.memory_range("groups"),
                   error_memory(device)};
  const GroupedCounters& counters = arguments.counters;
  if (counters.ready) launch.memory.push_back(counters.ready->memory_range("ready"));
  if (counters.done) launch.memory.push_back(counters.done->memory_range("done"));
  return launch;
}

/// Rows of a group to choose the kernel by: what the caller expects, else all rows shared evenly.
int64_t expected_rows(const GroupedGemmArguments& arguments) {
  const auto [m, n, k, num_groups] = Sizes(arguments);
  if (arguments.expected_m) return std::clamp<int64_t>(*arguments.expected_m, 1, m);
  return arguments.source == GroupSource::kMasked ? m : ceil_div(m, num_groups);
}

}  // namespace

Launch make_grouped_launch(Device& device, const GroupedGemmArguments& arguments) {
  check_arguments(arguments);
  const Sizes sizes(arguments);
  GemmProblem problem;
  problem.m = expected_rows(arguments);
  problem.n = sizes.n;
  problem.k = sizes.k;
  problem.num_groups = sizes.num_groups;
  problem.no_clusters = arguments.counters.ready.has_value();
  problem.d_bytes = element_bytes(arguments.d.dtype);
  if (arguments.num_sms) {
    problem.num_sms = static_cast<int>(std::min<int64_t>(*arguments.num_sms, INT32_MAX));
  }
  const GemmCandidate choice = choose_kernel(device, problem);
  return make_launch(device, arguments, *choice.kernel, choice.config, choice.schedule);
}

Launch make_grouped_launch(Device& device, const GroupedGemmArguments& arguments,
                           const KernelInfo& kernel, const GemmSchedule& schedule) {
  check_arguments(arguments);
  const GemmConfig config = config_of(kernel);
  PK_CHECK(config.grouped, "kernel ", kernel.name, " is none of family ", kGroupedFamily);
  check_schedule(kernel, config, schedule);
  return make_launch(device, arguments, kernel, config, schedule);
}

}  // namespace pykernels::gemm
