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
/// that leaves ranks out of step the waits of this call end; others leave the call whole, so that
/// the peers get what they wait for. Behind either, this rank makes no calls.
__device__ __forceinline__ void record_error(const BufferParams& buffer, const ErrorRecord& error) {
  const auto kind = static_cast<ErrorKind>(error.kind);
  BufferState* state = buffer.state;
  const bool is_value = kind == ErrorKind::kExpert || kind == ErrorKind::kCapacity;
  const uint64_t epoch = state->epoch + (is_value ? 1 : 0);  // up to which all calls are whole
  const bool in_step = leaves_in_step(kind);
  // The layout of a call that is not made any more may find a wrong value again.
  if (in_step && Failure::forbids(ptx::ld_relaxed_gpu_u32(&state->failed), epoch)) return;
  const uint32_t failed = Failure{in_step, epoch}.bits();
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
  // What a peer has told is passed on as it is: whoever waits for this rank blames the same one.
  const bool was_told = kind == ErrorKind::kPeer;
  const Trouble trouble{was_told ? static_cast<ErrorKind>(error.index >> 32) : kind, error.peer,
                        epoch};
#pragma unroll 1
  for (uint32_t r = 0; r < buffer.num_ranks; ++r) {
    if (r == buffer.rank || (state->masked >> r & 1) != 0) continue;
    ptx::st_relaxed_sys_u64(&mail_of(buffer, r, buffer.rank)->trouble, trouble.bits());
  }
}

/// Whether this call is not made, or no more. Any thread.
__device__ __forceinline__ bool is_forbidden(const BufferState* state, uint64_t epoch) {
  return Failure::forbids(ptx::ld_relaxed_gpu_u32(&state->failed), epoch);
}

}  // namespace pykernels::moe
