// Where the tokens of a launch lie in the cache.
#pragma once

#include "core/device_error.cuh"
#include "mla/cache_config.h"
#include "ptx/types.cuh"

namespace pykernels::mla {

inline constexpr int64_t kNoSlot = -1;

__device__ __forceinline__ int64_t load_slot(const SlotMapping& mapping, uint32_t token) {
  if (mapping.is_int64) return static_cast<const int64_t*>(mapping.slots)[token];
  return static_cast<const int32_t*>(mapping.slots)[token];
}

/// Whether the cache has this slot; all else but kNoSlot is an error.
__device__ __forceinline__ bool has_slot(const CacheView& cache, int64_t slot) {
  return static_cast<uint64_t>(slot) < cache.num_slots;
}

/// Of a slot that the cache has.
__device__ __forceinline__ uint8_t* token_in_cache(const CacheView& cache, int64_t slot) {
  const auto index = static_cast<uint32_t>(slot);
  const uint32_t page = index >> cache.page_shift;
  const uint32_t token = index - (page << cache.page_shift);
  return cache.tokens + page * cache.page_stride + token * cache.token_stride;
}

/// One thread. A slot beyond 32 bits is recorded as the nearest value that has them.
__device__ __forceinline__ void record_slot(const CacheView& cache, const SlotMapping& mapping,
                                            uint32_t token, int64_t slot) {
  constexpr int64_t kMost = 0x7fffffff;
  const int64_t value = max(min(slot, kMost), -kMost - 1);
  write_error(mapping.errors, {DeviceErrorKind::kSlot, token, static_cast<int32_t>(value),
                               static_cast<int32_t>(cache.num_slots)});
}

}  // namespace pykernels::mla
