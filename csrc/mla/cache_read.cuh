// The tokens of slots of the MLA cache as BF16: the inverse of writing them.            sm_90a
//
// Memory-bound: a warp takes a token, a lane as much of it as when it is written.
#pragma once

#include "core/words.cuh"
#include "mla/cache_slots.cuh"
#include "mla/dequantise.cuh"
#include "ptx/control.cuh"

namespace pykernels::mla {

/// The values of a token that the cache does not have: two BF16 NaN.
inline constexpr uint32_t kNanWord = 0x7fff7fff;

/// q * scale, rounded to FP32, then to BF16.
__device__ __forceinline__ void load_fp8(const uint8_t* source, uint32_t lane,
                                         uint32_t (&words)[kLatentWords]) {
  uint32_t codes[kLatentColumns / 4];
  load_words<kLatentColumns / 4>(source + lane * kLatentColumns, codes);
  const float scale =
      reinterpret_cast<const float*>(source + kFp8ScaleOffset)[lane / kLanesPerScale];
#pragma unroll
  for (uint32_t i = 0; i < kLatentWords; ++i) {
    words[i] = dequantise(codes[i / 2] >> (i % 2 * 16), scale);
  }
}

template <MlaCacheConfig kConfig>
__device__ __forceinline__ void mla_cache_read_body(const MlaCacheReadParams& params) {
  ptx::griddepcontrol_wait();               // all threads, before any access to global memory
  ptx::griddepcontrol_launch_dependents();  // a warp has one token, which is also its last
  const uint32_t token = blockIdx.x * kConfig.tokens_per_cta() + threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  if (token >= params.mapping.num_tokens) return;

  const int64_t slot = load_slot(params.mapping, token);
  uint32_t words[kLatentWords];
  uint32_t rope_word;
  if (has_slot(params.cache, slot)) {
    const uint8_t* source = token_in_cache(params.cache, slot);
    const uint32_t rope_offset = params.cache.fp8 ? kFp8RopeOffset : kHeadDimV * 2;
    rope_word = reinterpret_cast<const uint32_t*>(source + rope_offset)[lane];
    if (params.cache.fp8) {
      load_fp8(source, lane, words);
    } else {
      load_words<kLatentWords>(source + lane * kLatentColumns * 2, words);
    }
  } else {
    if (slot != kNoSlot && lane == 0) record_slot(params.cache, params.mapping, token, slot);
    rope_word = slot == kNoSlot ? 0 : kNanWord;
#pragma unroll
    for (uint32_t i = 0; i < kLatentWords; ++i) words[i] = rope_word;
  }
  store_words<kLatentWords>(
      params.kv_latent + token * params.latent_row_bytes + lane * kLatentColumns * 2, words);
  reinterpret_cast<uint32_t*>(params.k_rope + token * params.rope_row_bytes)[lane] = rope_word;
}

template <MlaCacheConfig kConfig>
constexpr uint32_t mla_cache_read_body_shared_bytes() {
  return 0;
}

}  // namespace pykernels::mla
