// The launch: as many CTAs as the device holds, or fewer where a warp each has nothing to do.
#include "quantize/silu_mul_launch.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/check.h"
#include "core/math.h"
#include "core/registry.h"
#include "quantize/input_type.h"

namespace pykernels::quantize {
namespace {

constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max();

/// A tensor as groups of rows: one group where it is a matrix.
struct Groups {
  int64_t num_groups = 1;
  int64_t rows;
  int64_t columns;
  int64_t group_stride = 0;
  int64_t row_stride;
  int64_t column_stride;

  explicit Groups(const TensorView& tensor) {
    const int first = tensor.rank - 2;
    rows = tensor.sizes[first];
    columns = tensor.sizes[first + 1];
    row_stride = tensor.strides[first];
    column_stride = tensor.strides[first + 1];
    if (tensor.rank == 3) {
      num_groups = tensor.sizes[0];
      group_stride = tensor.strides[0];
    }
  }
};

/// How CTAs share the rows; see SiluMulQuantizeParams.
struct Sharing {
  int64_t num_chunks = 1;
  int64_t entries_per_chunk = 0;
  int64_t ctas_per_chunk;
  int64_t chunks_at_a_time = 1;
};

/// Of rows by their indices, chunks of so many that each CTA has one and all indices are read once;
/// where rows are fewer than CTAs, some CTAs share each.
Sharing share_indices(int64_t rows, int64_t num_ctas, int64_t list_entries) {
  Sharing sharing;
  sharing.entries_per_chunk = std::min(ceil_div(rows, num_ctas), list_entries);
  sharing.num_chunks = ceil_div(rows, sharing.entries_per_chunk);
  sharing.ctas_per_chunk = std::max<int64_t>(num_ctas / sharing.num_chunks, 1);
  sharing.chunks_at_a_time = std::min(num_ctas / sharing.ctas_per_chunk, sharing.num_chunks);
  return sharing;
}

Sharing share(const SiluMulQuantizeArguments& arguments, int64_t max_ctas, int64_t list_entries) {
  const int64_t num_blocks = arguments.scales.num_elements();
  const int64_t num_ctas = std::min(max_ctas, ceil_div(num_blocks, kBlocksPerWarp));
  const int64_t num_entries = arguments.groups.sizes[0];
  if (arguments.source == GroupSource::kIndices) {
    return share_indices(num_entries, num_ctas, list_entries);
  }
  Sharing sharing;
  sharing.ctas_per_chunk = num_ctas;
  if (arguments.source == GroupSource::kMasked) {
    sharing.entries_per_chunk = std::min(num_entries, list_entries);
    sharing.num_chunks = ceil_div(num_entries, list_entries);
  }
  return sharing;
}

void set_tensors(SiluMulQuantizeParams& params, const SiluMulQuantizeArguments& arguments) {
  const Groups x(arguments.x);
  const Groups q(arguments.q);
  const Groups scales(arguments.scales);
  const int64_t x_bytes = element_bytes(arguments.x.dtype);
  params.x = reinterpret_cast<const void*>(arguments.x.address);
  params.q = reinterpret_cast<uint8_t*>(arguments.q.address);
  params.scales = reinterpret_cast<float*>(arguments.scales.address);
  params.x_group_bytes = static_cast<uint64_t>(x.group_stride * x_bytes);
  params.x_row_bytes = static_cast<uint64_t>(x.row_stride * x_bytes);
  params.q_group_bytes = static_cast<uint64_t>(q.group_stride);
  params.q_row_bytes = static_cast<uint64_t>(q.row_stride);
  params.scales_group_stride = scales.group_stride;
  params.scales_row_stride = scales.row_stride;
  params.scales_column_stride = scales.column_stride;
  params.rows = static_cast<uint32_t>(q.rows);
  params.columns = static_cast<uint32_t>(q.columns);
  params.k_blocks = FastDivisor(static_cast<uint32_t>(scales.columns));
  params.input_type = input_type(arguments.x.dtype);
  params.scale_format = arguments.scale_format;
}

void set_groups(SiluMulQuantizeParams& params, const SiluMulQuantizeArguments& arguments,
                const Sharing& sharing) {
  params.source = arguments.source;
  params.groups = reinterpret_cast<const int32_t*>(arguments.groups.address);
  params.num_entries = static_cast<uint32_t>(arguments.groups.sizes[0]);
  params.num_chunks = static_cast<uint32_t>(sharing.num_chunks);
  params.entries_per_chunk = static_cast<uint32_t>(sharing.entries_per_chunk);
  params.search_step = std::bit_ceil(params.entries_per_chunk) / 2;
}

}  // namespace

Launch make_silu_mul_quantize_launch(Device& device, const SiluMulQuantizeArguments& arguments) {
  const KernelInfo& kernel = Registry::instance().get("silu_mul_quantize_1x128");
  const SiluMulQuantizeConfig config{.threads = kernel.threads};
  const int64_t max_ctas = device.max_active_clusters(kernel, {1, 1, 1});
  PK_CHECK(max_ctas > 0, "the device cannot run kernel ", kernel.name);
  // The kernel counts blocks in 32 bits, one step beyond the last one included.
  const int64_t num_blocks = arguments.scales.num_elements();
  PK_CHECK(num_blocks <= kMaxBlocks, "x must have at most ", kMaxBlocks, " scale factors, got ",
           num_blocks, "; split the call");
  const Sharing sharing = share(arguments, max_ctas, config.list_entries());

  SiluMulQuantizeParams params;
  set_tensors(params, arguments);
  set_groups(params, arguments, sharing);
  params.errors = reinterpret_cast<DeviceError*>(device.error_record());

  Launch launch;
  launch.kernel = kernel.name;
  launch.grid.x = static_cast<uint32_t>(sharing.ctas_per_chunk);
  launch.grid.y = static_cast<uint32_t>(sharing.chunks_at_a_time);
  launch.block.x = kernel.threads;
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  launch.arguments = argument_bytes(params);
  launch.memory = {arguments.x.memory_range("x"), arguments.q.memory_range("q"),
                   arguments.scales.memory_range("scales"), error_memory(device)};
  if (arguments.source != GroupSource::kNone) {
    launch.memory.push_back(arguments.groups.memory_range("groups"));
  }
  return launch;
}

}  // namespace pykernels::quantize
