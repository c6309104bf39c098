// Merging partial attention results: the kernel's configuration and its one parameter.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"
#include "mla/config.h"
#include "mla/plan.h"

namespace pykernels::mla {

struct CombineConfig {
  uint32_t threads = 256;

  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return threads; }
  PK_HOST_DEVICE constexpr uint32_t num_warps() const { return threads / 32; }
};

/// States are partial results of the same row: an output, normalised, and its log-sum-exp.
struct CombineParams {
  // The split requests of a plan: their states are their slots, others are left alone. Null: all
  // requests have num_states states.
  const PlannedRequest* requests = nullptr;
  const uint8_t* outs = nullptr;  // of the first state; rows 16-byte aligned
  const uint8_t* lses = nullptr;  // FP32
  uint8_t* out = nullptr;         // rows 16-byte aligned
  uint8_t* lse = nullptr;         // FP32
  RowStrides outs_strides;        // the batch has none where a plan gives the states
  RowStrides lses_strides;
  RowStrides out_strides;
  RowStrides lse_strides;
  uint64_t outs_state_stride = 0;  // bytes
  uint64_t lses_state_stride = 0;
  uint32_t num_states = 0;
  uint32_t num_units = 0;    // of work: slices of all rows' columns
  uint32_t num_columns = 0;  // a multiple of 8
  FastDivisor slices;        // of a row: what a warp takes of it
  FastDivisor num_heads;
  FastDivisor seqlen_q;
  uint32_t input_bytes = 4;  // of an element: 4 is FP32, 2 is BF16
  uint32_t output_bytes = 2;
};

/// Columns that a warp takes of a row: 16 bytes a lane.
PK_HOST_DEVICE constexpr uint32_t slice_columns(uint32_t input_bytes) {
  return 32 * (16 / input_bytes);
}

}  // namespace pykernels::mla
