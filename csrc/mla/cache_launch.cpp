// The launches: a warp for each token.
#include "mla/cache_launch.h"

#include <bit>
#include <limits>

#include "core/check.h"
#include "core/math.h"
#include "core/registry.h"

namespace pykernels::mla {
namespace {

uint64_t stride_bytes(const TensorView& tensor, int dimension) {
  return static_cast<uint64_t>(tensor.strides[dimension]) * element_bytes(tensor.dtype);
}

CacheView cache_view(const TensorView& kv_cache) {
  const int64_t num_slots = kv_cache.sizes[0] * kv_cache.sizes[1];
  PK_CHECK(num_slots <= std::numeric_limits<int32_t>::max(),
           "kv_cache must have less than 2^31 slots, got ", num_slots);
  CacheView view;
  view.tokens = reinterpret_cast<uint8_t*>(kv_cache.address);
  view.page_stride = stride_bytes(kv_cache, 0);
  view.token_stride = stride_bytes(kv_cache, 1);
  view.num_slots = static_cast<uint32_t>(num_slots);
  view.page_shift = static_cast<uint32_t>(std::countr_zero(uint64_t(kv_cache.sizes[1])));
  view.fp8 = kv_cache.dtype != DataType::kBfloat16;
  return view;
}

SlotMapping mapping_of(Device& device, const TensorView& slot_mapping) {
  SlotMapping mapping;
  mapping.slots = reinterpret_cast<const void*>(slot_mapping.address);
  mapping.errors = reinterpret_cast<DeviceError*>(device.error_record());
  mapping.num_tokens = static_cast<uint32_t>(slot_mapping.sizes[0]);
  mapping.is_int64 = slot_mapping.dtype == DataType::kInt64;
  return mapping;
}

Factors factors_of(const TensorView& tensor) {
  Factors factors;
  factors.values = reinterpret_cast<const uint8_t*>(tensor.address);
  factors.row_bytes = stride_bytes(tensor, 0);  // of a vector never used: it has one row
  factors.is_float32 = tensor.dtype == DataType::kFloat32;
  return factors;
}

/// All but the arguments and the memory.
Launch launch_of(const char* name, int64_t num_tokens) {
  const KernelInfo& kernel = Registry::instance().get(name);
  const MlaCacheConfig config{.threads = kernel.threads};
  Launch launch;
  launch.kernel = kernel.name;
  launch.grid.x = static_cast<uint32_t>(ceil_div(num_tokens, config.tokens_per_cta()));
  launch.block.x = kernel.threads;
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  return launch;
}

MlaCacheWriteParams write_params(Device& device, const MlaCacheWriteArguments& arguments) {
  MlaCacheWriteParams params;
  params.cache = cache_view(arguments.kv_cache);
  params.mapping = mapping_of(device, arguments.slot_mapping);
  params.kv_latent = reinterpret_cast<const uint8_t*>(arguments.kv_latent.address);
  params.k_rope = reinterpret_cast<const uint8_t*>(arguments.k_rope.address);
  params.latent_row_bytes = stride_bytes(arguments.kv_latent, 0);
  params.rope_row_bytes = stride_bytes(arguments.k_rope, 0);
  if (arguments.norm_weight) params.norm_weight = factors_of(*arguments.norm_weight);
  params.norm_eps = static_cast<float>(arguments.norm_eps);
  if (arguments.angles) {
    params.cos = factors_of(arguments.angles->cos);
    params.sin = factors_of(arguments.angles->sin);
    params.rotation = arguments.angles->interleaved ? Rotation::kInterleaved : Rotation::kHalves;
  }
  return params;
}

MlaCacheReadParams read_params(Device& device, const MlaCacheReadArguments& arguments) {
  MlaCacheReadParams params;
  params.cache = cache_view(arguments.kv_cache);
  params.mapping = mapping_of(device, arguments.slot_mapping);
  params.kv_latent = reinterpret_cast<uint8_t*>(arguments.kv_latent.address);
  params.k_rope = reinterpret_cast<uint8_t*>(arguments.k_rope.address);
  params.latent_row_bytes = stride_bytes(arguments.kv_latent, 0);
  params.rope_row_bytes = stride_bytes(arguments.k_rope, 0);
  return params;
}

}  // namespace

Launch make_mla_cache_write_launch(Device& device, const MlaCacheWriteArguments& arguments) {
  Launch launch = launch_of("mla_cache_write", arguments.kv_latent.sizes[0]);
  launch.arguments = argument_bytes(write_params(device, arguments));
  launch.memory = {arguments.kv_latent.memory_range("kv_latent"),
                   arguments.k_rope.memory_range("k_rope"),
                   arguments.kv_cache.memory_range("kv_cache"),
                   arguments.slot_mapping.memory_range("slot_mapping"), error_memory(device)};
  if (arguments.norm_weight) {
    launch.memory.push_back(arguments.norm_weight->memory_range("norm_weight"));
  }
  if (arguments.angles) {
    launch.memory.push_back(arguments.angles->cos.memory_range("cos"));
    launch.memory.push_back(arguments.angles->sin.memory_range("sin"));
  }
  return launch;
}

Launch make_mla_cache_read_launch(Device& device, const MlaCacheReadArguments& arguments) {
  Launch launch = launch_of("mla_cache_read", arguments.kv_latent.sizes[0]);
  launch.arguments = argument_bytes(read_params(device, arguments));
  launch.memory = {arguments.kv_cache.memory_range("kv_cache"),
                   arguments.slot_mapping.memory_range("slot_mapping"),
                   arguments.kv_latent.memory_range("kv_latent"),
                   arguments.k_rope.memory_range("k_rope"), error_memory(device)};
  return launch;
}

}  // namespace pykernels::mla
