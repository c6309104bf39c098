// Tensor map, grid and parameters of an MLA decode.
#include "mla/launch.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numbers>

#include "core/check.h"
#include "core/registry.h"
#include "mla/cache_policy.h"

namespace pykernels::mla {
namespace {

/// The bytes between neighbours in each dimension; `head`, `token`: those dimensions.
RowStrides row_strides(const TensorView& tensor, int token, int head) {
  const auto bytes = static_cast<uint64_t>(element_bytes(tensor.dtype));
  return {.batch = static_cast<uint64_t>(tensor.strides[0]) * bytes,
          .token = static_cast<uint64_t>(tensor.strides[token]) * bytes,
          .head = static_cast<uint64_t>(tensor.strides[head]) * bytes};
}

/// Whether TMA can load the cache's pages, in boxes of 8 tokens at least.
bool has_map(const MlaDecodeParams& params, const MlaDecodeConfig& config) {
  const uint32_t page_size = 1u << params.page_shift;
  // cuTensorMapEncodeTiled wants each stride to be a multiple of the one before.
  return !config.fp8 && page_size >= kMinMapPage && params.num_pages > 0 &&
         params.page_stride % params.token_stride == 0;
}

/// Boxes of 64 columns and as many tokens of a page as one CTA loads of a block.
TensorMapFields map_fields(const MlaDecodeParams& params, const MlaDecodeConfig& config) {
  const uint32_t page_size = 1u << params.page_shift;
  TensorMapFields fields;
  fields.type = TensorMapType::kBfloat16;
  fields.rank = 3;
  fields.address = reinterpret_cast<uint64_t>(params.kv_cache);
  fields.dims[0] = kHeadDim;
  fields.dims[1] = page_size;
  fields.dims[2] = params.num_pages;
  fields.strides[0] = params.token_stride;
  fields.strides[1] = params.page_stride;
  fields.box[0] = kGroupColumns;
  fields.box[1] = std::min(page_size, kBlockTokens / config.cluster);
  fields.box[2] = 1;
  fields.swizzle = TensorMapSwizzle::k128B;
  fields.l2_promotion = TensorMapL2Promotion::k256B;
  return fields;
}

/// A dimension of size 1 has no stride of its own; take one that fits the tensor map.
uint64_t stride_or(int64_t size, int64_t stride, uint64_t bytes, uint64_t otherwise) {
  return size > 1 ? static_cast<uint64_t>(stride) * bytes : otherwise;
}

void set_cache(MlaDecodeParams& params, const TensorView& cache) {
  const uint64_t bytes = element_bytes(cache.dtype);
  const auto page_size = static_cast<uint64_t>(cache.sizes[1]);
  params.kv_cache = reinterpret_cast<const uint8_t*>(cache.address);
  params.num_pages = static_cast<uint32_t>(cache.sizes[0]);
  params.page_shift = static_cast<uint32_t>(std::bit_width(page_size) - 1);
  params.token_stride = stride_or(cache.sizes[1], cache.strides[1], bytes, cache.sizes[3] * bytes);
  params.page_stride =
      stride_or(cache.sizes[0], cache.strides[0], bytes, page_size * params.token_stride);
}

void set_request_tensors(MlaDecodeParams& params, const MlaDecodeArguments& arguments) {
  params.q_nope = reinterpret_cast<const uint8_t*>(arguments.q_nope.address);
  params.q_rope = reinterpret_cast<const uint8_t*>(arguments.q_rope.address);
  params.out = reinterpret_cast<uint8_t*>(arguments.out.address);
  params.lse = reinterpret_cast<uint8_t*>(arguments.lse.address);
  params.q_nope_strides = row_strides(arguments.q_nope, 1, 2);
  params.q_rope_strides = row_strides(arguments.q_rope, 1, 2);
  params.out_strides = row_strides(arguments.out, 1, 2);
  params.lse_strides = row_strides(arguments.lse, 2, 1);
  params.block_table = reinterpret_cast<const int32_t*>(arguments.block_table.address);
  params.block_table_stride = arguments.block_table.strides[0];
  params.cache_seqlens = reinterpret_cast<const int32_t*>(arguments.cache_seqlens.address);
}

void set_sizes(MlaDecodeParams& params, const MlaDecodeArguments& arguments) {
  const auto seqlen_q = arguments.q_nope.sizes[1];
  const auto num_heads = arguments.q_nope.sizes[2];
  params.batch = static_cast<uint32_t>(arguments.q_nope.sizes[0]);
  params.seqlen_q = static_cast<uint32_t>(seqlen_q);
  params.num_rows = static_cast<uint32_t>(seqlen_q * num_heads);
  params.num_heads = FastDivisor(static_cast<uint32_t>(num_heads));
  const int64_t reach = arguments.block_table.sizes[1] << params.page_shift;
  // One block more is still counted in 32 bits.
  const int64_t most = std::numeric_limits<int32_t>::max() - kBlockTokens;
  params.max_length = static_cast<uint32_t>(std::min(reach, most));
}

}  // namespace

Plan plan_pointers(const PlanTensors& plan) {
  return {.items = reinterpret_cast<WorkItem*>(plan.items.address),
          .part_offsets = reinterpret_cast<int32_t*>(plan.part_offsets.address),
          .requests = reinterpret_cast<PlannedRequest*>(plan.requests.address),
          .partial_out = reinterpret_cast<float*>(plan.partial_out.address),
          .partial_lse = reinterpret_cast<float*>(plan.partial_lse.address)};
}

Launch make_mla_decode_launch(Device& device, const MlaDecodeArguments& arguments) {
  const bool fp8 = arguments.kv_cache.sizes[3] != kHeadDim;
  const int64_t num_rows = arguments.q_nope.sizes[1] * arguments.q_nope.sizes[2];
  PK_CHECK(num_rows > 0 && num_rows <= std::numeric_limits<int32_t>::max(),
           "seqlen_q * num_heads must be from 1 to 2^31 - 1, got ", num_rows);
  const MlaDecodeConfig config = choose_config(num_rows, fp8, device.properties().num_sms);
  const KernelInfo& kernel = Registry::instance().get(kernel_name(config));
  const auto row_tiles = static_cast<uint32_t>(num_row_tiles(num_rows, config));

  MlaDecodeParams params;
  params.plan = plan_pointers(arguments.plan);
  set_cache(params, arguments.kv_cache);
  set_request_tensors(params, arguments);
  set_sizes(params, arguments);
  params.errors = reinterpret_cast<DeviceError*>(device.error_record());
  params.scale_log2 = static_cast<float>(arguments.softmax_scale * std::numbers::log2e);
  params.causal = arguments.causal;
  params.has_map = has_map(params, config);
  if (params.has_map) params.map_kv = device.encode_tensor_map(map_fields(params, config));
  // Blocks that one CTA or cluster reads, no other does.
  params.cache_policy = row_tiles <= config.cluster ? kCacheEvictFirst : kCacheNormal;

  Launch launch;
  launch.kernel = kernel.name;
  launch.grid.x = row_tiles;
  launch.grid.y = static_cast<uint32_t>(arguments.plan.part_offsets.sizes[0] - 1);
  launch.block.x = kernel.threads;
  launch.cluster.x = config.cluster;
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  launch.arguments = argument_bytes(params);
  const auto& plan = arguments.plan;
  launch.memory = {arguments.q_nope.memory_range("q_nope"),
                   arguments.q_rope.memory_range("q_rope"),
                   arguments.kv_cache.memory_range("kv_cache"),
                   arguments.block_table.memory_range("block_table"),
                   arguments.cache_seqlens.memory_range("cache_seqlens"),
                   plan.items.memory_range("plan.items"),
                   plan.part_offsets.memory_range("plan.part_offsets"),
                   plan.requests.memory_range("plan.requests"),
                   plan.partial_out.memory_range("plan.partial_out"),
                   plan.partial_lse.memory_range("plan.partial_lse"),
                   arguments.out.memory_range("out"),
                   arguments.lse.memory_range("lse"),
                   error_memory(device)};
  return launch;
}

}  // namespace pykernels::mla
