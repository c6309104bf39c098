// Tokens to their slots of the MLA cache: RMSNorm of the latent part, rotary embedding of the other
// one, cast to FP8, each where it is asked for.                                       sm_90a
//
// Memory-bound: a warp takes a token, and loads all of it and what it is multiplied with before it
// looks at any; a lane has 16 columns of the latent part, in accesses of 16 bytes, and two of the
// rope part.
#pragma once

#include "core/bfloat16.cuh"
#include "core/scale.cuh"
#include "core/warp.cuh"
#include "core/words.cuh"
#include "mla/cache_slots.cuh"
#include "ptx/control.cuh"
#include "ptx/convert.cuh"

namespace pykernels::mla {

/// A lane's weights of the RMSNorm, as they lie in memory until they are needed.
struct LaneWeights {
  uint32_t words[kLatentColumns];

  __device__ __forceinline__ void load(const Factors& weights, uint32_t lane) {
    if (weights.is_float32) {
      load_words<kLatentColumns>(weights.values + lane * kLatentColumns * 4, words);
    } else {
      load_words<kLatentWords>(weights.values + lane * kLatentColumns * 2, words);
#pragma unroll
      for (uint32_t i = kLatentWords; i < kLatentColumns; ++i) words[i] = 0;
    }
  }

  __device__ __forceinline__ float value(const Factors& weights, uint32_t i) const {
    return weights.is_float32 ? __uint_as_float(words[i]) : bfloat16_value(words[i / 2], i % 2);
  }
};

/// Two neighbouring ones of the 32 cosines or sines of a token, as they lie in memory.
struct FactorPair {
  uint2 words;

  __device__ __forceinline__ void load(const Factors& factors, uint32_t token, uint32_t pair) {
    const uint8_t* row = factors.values + token * factors.row_bytes;
    if (factors.is_float32) {
      words = reinterpret_cast<const uint2*>(row)[pair];
    } else {
      words = make_uint2(reinterpret_cast<const uint32_t*>(row)[pair], 0);
    }
  }

  __device__ __forceinline__ float value(const Factors& factors, uint32_t i) const {
    if (factors.is_float32) return __uint_as_float(i == 0 ? words.x : words.y);
    return bfloat16_value(words.x, i);
  }
};

/// y = y / sqrt(mean(y^2) + eps) * weight. A converged warp, which has the whole row.
__device__ __forceinline__ void normalise(const MlaCacheWriteParams& params,
                                          const LaneWeights& weights, float (&y)[kLatentColumns]) {
  float sum = 0.0f;
#pragma unroll
  for (uint32_t i = 0; i < kLatentColumns; ++i) sum = __fadd_rn(sum, __fmul_rn(y[i], y[i]));
#pragma unroll
  for (uint32_t distance = 16; distance > 0; distance /= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, distance));
  }
  const float mean = __fmul_rn(sum, 1.0f / kHeadDimV);
  const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, params.norm_eps)));
#pragma unroll
  for (uint32_t i = 0; i < kLatentColumns; ++i) {
    y[i] = __fmul_rn(__fmul_rn(y[i], factor), weights.value(params.norm_weight, i));
  }
}

/// The lane's two rope columns, and the angles that they turn by.
struct RopePart {
  uint32_t word;
  FactorPair cos;
  FactorPair sin;

  __device__ __forceinline__ void load(const MlaCacheWriteParams& params, uint32_t token,
                                       uint32_t lane) {
    word = reinterpret_cast<const uint32_t*>(params.k_rope + token * params.rope_row_bytes)[lane];
    if (params.rotation == Rotation::kNone) return;
    const uint32_t pair = params.rotation == Rotation::kInterleaved ? lane / 2 : lane % 16;
    cos.load(params.cos, token, pair);
    sin.load(params.sin, token, pair);
  }

  /// The columns as they are stored. A converged warp.
  __device__ __forceinline__ uint32_t rotated(const MlaCacheWriteParams& params,
                                              uint32_t lane) const {
    if (params.rotation == Rotation::kNone) return word;
    const bool is_interleaved = params.rotation == Rotation::kInterleaved;
    // Of columns i and i + 32, half a warp lies between them.
    const uint32_t partner = __shfl_xor_sync(kAllLanes, word, 16);
    float turned[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t angle = is_interleaved ? lane % 2 : i;
      const bool is_first = is_interleaved ? i == 0 : lane < 16;  // of the pair of columns
      const float other = is_interleaved ? bfloat16_value(word, 1 - i) : bfloat16_value(partner, i);
      const float sine = sin.value(params.sin, angle);
      turned[i] = __fadd_rn(__fmul_rn(bfloat16_value(word, i), cos.value(params.cos, angle)),
                            __fmul_rn(other, is_first ? -sine : sine));
    }
    return ptx::cvt_rn_bf16x2_f32(turned[1], turned[0]);
  }
};

/// As quantize_1x128 casts them: eight lanes have the columns of one scale.
__device__ __forceinline__ void store_fp8(uint8_t* destination, uint32_t lane,
                                          const float (&y)[kLatentColumns]) {
  uint32_t amax_bits = 0;
#pragma unroll
  for (uint32_t i = 0; i < kLatentColumns; ++i) {
    amax_bits = max(amax_bits, __float_as_uint(y[i]) & 0x7fffffffu);
  }
  const float scale = scale_of(max_over_lanes<kLanesPerScale>(amax_bits), ScaleFormat::kFp32);
  const Divider divider(scale);
  uint32_t words[kLatentColumns / 4];
#pragma unroll
  for (uint32_t i = 0; i < kLatentColumns / 4; ++i) {
    words[i] = divider.cast_to_e4m3x4({y[4 * i], y[4 * i + 1], y[4 * i + 2], y[4 * i + 3]});
  }
  store_words<kLatentColumns / 4>(destination + lane * kLatentColumns, words);
  if (lane % kLanesPerScale == 0) {
    reinterpret_cast<float*>(destination + kFp8ScaleOffset)[lane / kLanesPerScale] = scale;
  }
}

/// One warp a token; a repeated slot gets parts of either token, as nothing orders them.
template <MlaCacheConfig kConfig>
__device__ __forceinline__ void mla_cache_write_body(const MlaCacheWriteParams& params) {
  ptx::griddepcontrol_wait();               // all threads, before any access to global memory
  ptx::griddepcontrol_launch_dependents();  // a warp has one token, which is also its last
  const uint32_t token = blockIdx.x * kConfig.tokens_per_cta() + threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  if (token >= params.mapping.num_tokens) return;

  const bool is_normalised = params.norm_weight.values != nullptr;
  const int64_t slot = load_slot(params.mapping, token);
  uint32_t words[kLatentWords];
  load_words<kLatentWords>(
      params.kv_latent + token * params.latent_row_bytes + lane * kLatentColumns * 2, words);
  RopePart rope;
  rope.load(params, token, lane);
  LaneWeights weights;
  if (is_normalised) weights.load(params.norm_weight, lane);

  if (!has_slot(params.cache, slot)) {
    if (slot != kNoSlot && lane == 0) record_slot(params.cache, params.mapping, token, slot);
    return;
  }
  float y[kLatentColumns];
#pragma unroll
  for (uint32_t i = 0; i < kLatentColumns; ++i) y[i] = bfloat16_value(words[i / 2], i % 2);
  if (is_normalised) {
    normalise(params, weights, y);
#pragma unroll
    for (uint32_t i = 0; i < kLatentWords; ++i) {
      words[i] = ptx::cvt_rn_bf16x2_f32(y[2 * i + 1], y[2 * i]);
    }
  }
  uint8_t* destination = token_in_cache(params.cache, slot);
  uint32_t rope_offset = kHeadDimV * 2;
  if (params.cache.fp8) {
    rope_offset = kFp8RopeOffset;
    store_fp8(destination, lane, y);
  } else {
    store_words<kLatentWords>(destination + lane * kLatentColumns * 2, words);
  }
  reinterpret_cast<uint32_t*>(destination + rope_offset)[lane] = rope.rotated(params, lane);
}

template <MlaCacheConfig kConfig>
constexpr uint32_t mla_cache_write_body_shared_bytes() {
  return 0;
}

}  // namespace pykernels::mla
