// How the kernels record that a call of theirs has failed.
#pragma once

#include "moe/buffer.h"
#include "ptx/atomic.cuh"
#include "ptx/memory.cuh"

namespace pykernels::moe {

/// The mail that `from` writes in the window of `to`.
__device__ __forceinline__ Mail* mail_of(const BufferParams& buffer, uint32_t to, uint32_t from) {
  return reinterpret_cast<Mail*>(buffer.windows[to] + from * buffer.layout.mail_bytes);
}

/// Of one thread. The first error since the reset goes to the record and to the peers. After one
/// that leaves ranks out of step the waits of this call end, and later calls do nothing; others
/// leave the call whole, so that the peers get what they wait for.
__device__ __forceinline__ void record_error(const BufferParams& buffer, const ErrorRecord& error) {
  const auto kind = static_cast<ErrorKind>(error.kind);
  BufferState* state = buffer.state;
  const uint32_t failed = leaves_in_step(kind) ? kWrongValue : kBroken;
  const uint32_t before = ptx::atom_relaxed_gpu_max_u32(&state->failed, failed);
  if (before >= failed) return;
  if (before == 0) {
    ErrorRecord* record = buffer.record;
    record->phase = error.phase;
    record->rank = error.rank;
    record->peer = error.peer;
    record->expected = error.expected;
    record->seen = error.seen;
    record->index = error.index;
    ptx::st_release_sys_u32(&record->kind, error.kind);  // the host may be looking
  }
  const Trouble trouble{kind, error.peer, state->epoch + 1};
#pragma unroll 1
  for (uint32_t r = 0; r < buffer.num_ranks; ++r) {
    if (r == buffer.rank || (state->masked >> r & 1) != 0) continue;
    ptx::st_relaxed_sys_u64(&mail_of(buffer, r, buffer.rank)->trouble, trouble.bits());
  }
}

/// Whether the ranks are out of step since the reset. Any thread.
__device__ __forceinline__ bool is_broken(const BufferState* state) {
  return ptx::ld_relaxed_gpu_u32(&state->failed) == kBroken;
}

}  // namespace pykernels::moe
