// Shared memory of the quantise kernels: sizeof is the launch size.
#pragma once

#include "quantize/config.h"

namespace pykernels::quantize {

/// One word per warp: the greatest magnitude that the warp has seen, as FP32 bits.
template <QuantizeConfig kConfig>
struct SharedStorage {
  uint32_t warp_amax[kConfig.num_threads() / 32];
};

/// 1x128 blocks are reduced within eight lanes and need no shared memory.
template <QuantizeConfig kConfig>
constexpr uint32_t quantize_body_shared_bytes() {
  return kConfig.block_m == 1 ? 0 : sizeof(SharedStorage<kConfig>);
}

}  // namespace pykernels::quantize
