// Shared memory of the fused SwiGLU cast: sizeof is the launch size.
#pragma once

#include "quantize/silu_mul_config.h"

namespace pykernels::quantize {

template <SiluMulQuantizeConfig kConfig>
struct SiluMulStorage {
  uint32_t warp_sums[kConfig.num_warps()];    // of what the warp's threads add to the list
  uint32_t warp_errors[kConfig.num_warps()];  // which of its lanes have found a wrong value
  uint32_t list[kConfig.list_entries()];      // see RowList
  uint32_t first_row;                         // kGroupOffsets
  uint32_t num_rows;
  uint32_t has_recorded;  // this CTA has recorded an error
};

template <SiluMulQuantizeConfig kConfig>
constexpr uint32_t silu_mul_quantize_body_shared_bytes() {
  return sizeof(SiluMulStorage<kConfig>);
}

}  // namespace pykernels::quantize
