// Waiting for peers and telling them, all of it: every wait is bounded, counted, and leaves a
// record when it ends in vain.
//
// Epochs are the number of the call. A slot's flag, a mail's epoch and its `consumed` are released
// with it and acquired by whoever waits for this value. A peer may be ahead: it ends a call once it
// has what it needs, while warps of this rank are still to look whether it ended the one before. So
// waits are for the value or a later one, in the order of differences, which survives wrapping.
#pragma once

#include "moe/errors.cuh"
#include "ptx/barrier.cuh"
#include "ptx/control.cuh"
#include "ptx/warp.cuh"

namespace pykernels::moe {

/// Polls of a flag between two looks at the clock and at errors.
inline constexpr uint32_t kPollsPerLook = 16;

/// One thread's view of the buffer in this call.
class Signals {
 public:
  __device__ __forceinline__ explicit Signals(const BufferParams& buffer)
      : buffer_(buffer), epoch_(buffer.state->epoch + 1), masked_(buffer.state->masked) {}

  __device__ __forceinline__ bool is_masked(uint32_t rank) const {
    return (masked_ >> rank & 1) != 0;
  }

  /// Number of the call.
  __device__ __forceinline__ uint64_t epoch() const { return epoch_; }

  /// The mail that `from` writes in the window of `to`.
  __device__ __forceinline__ Mail* mail(uint32_t to, uint32_t from) const {
    return mail_of(buffer_, to, from);
  }
  __device__ __forceinline__ uint32_t* counts(Mail* mail) const {
    return reinterpret_cast<uint32_t*>(mail + 1);
  }
  __device__ __forceinline__ uint64_t* flag(uint32_t to, uint32_t from, uint32_t index) const {
    return reinterpret_cast<uint64_t*>(buffer_.windows[to] + buffer_.layout.flag(from, index));
  }
  __device__ __forceinline__ uint8_t* slot(uint32_t to, uint32_t from, uint32_t index) const {
    return buffer_.windows[to] + buffer_.layout.slot(from, index);
  }

  /// Waits until the peer has taken what this rank sent in the call before: the slots in its window
  /// and its mail may be written.
  __device__ __forceinline__ bool wait_consumed(uint32_t peer, Phase phase) const {
    return wait(&mail(buffer_.rank, peer)->consumed, epoch_ - 1, peer, phase, 0);
  }

  /// Waits for the peer's mail of this call, which may then be read.
  __device__ __forceinline__ bool wait_mail(uint32_t peer, Phase phase) const {
    return wait(&mail(buffer_.rank, peer)->epoch, epoch_, peer, phase, 0);
  }

  /// Whether the call that the peer's mail tells of is the same as this rank's.
  __device__ __forceinline__ bool matches(uint32_t peer, Phase phase, uint64_t signature) const {
    const uint64_t seen = mail(buffer_.rank, peer)->signature;
    if (seen == signature) return true;
    fail(ErrorKind::kMismatch, phase, peer, signature, seen, 0);
    return false;
  }

  /// Whether the peer returns as many tokens as it was sent: the handles are those of the ranks.
  __device__ __forceinline__ bool returns(uint32_t peer, Phase phase, uint32_t num_tokens) const {
    const uint32_t seen = mail(buffer_.rank, peer)->num_tokens;
    if (seen == num_tokens) return true;
    fail(ErrorKind::kHandle, phase, peer, num_tokens, seen, 0);
    return false;
  }

  /// Waits for a token from the peer; its slot may then be read.
  __device__ __forceinline__ bool wait_slot(uint32_t peer, uint32_t index, Phase phase) const {
    return wait(flag(buffer_.rank, peer, index), epoch_, peer, phase, index);
  }

  /// Releases what this thread has written or knows of to the peer that waits for the slot.
  __device__ __forceinline__ void release_slot(uint32_t peer, uint32_t index) const {
    ptx::st_release_sys_u64(flag(peer, buffer_.rank, index), epoch_);
  }
  __device__ __forceinline__ void release_mail(uint32_t peer) const {
    ptx::st_release_sys_u64(&mail(peer, buffer_.rank)->epoch, epoch_);
  }

  __device__ __forceinline__ void fail(ErrorKind kind, Phase phase, uint32_t peer,
                                       uint64_t expected, uint64_t seen, uint64_t index) const {
    ErrorRecord error{};
    error.kind = static_cast<uint32_t>(kind);
    error.phase = static_cast<uint32_t>(phase);
    error.rank = buffer_.rank;
    error.peer = peer;
    error.expected = expected;
    error.seen = seen;
    error.index = index;
    record_error(buffer_, error);
  }

  /// Whether the call may run, the same for all threads of the CTA. `forbidden`: in shared memory.
  __device__ __forceinline__ bool may_run(uint32_t& forbidden, uint32_t barrier) const {
    if (threadIdx.x == 0) forbidden = is_forbidden();
    ptx::bar_sync(barrier, blockDim.x);  // written
    return forbidden == 0;
  }

  /// Whether the call is not made, or no more. Any thread.
  __device__ __forceinline__ bool is_forbidden() const {
    return moe::is_forbidden(buffer_.state, epoch_);
  }

  /// Waits until another kernel of this GPU has counted so far; what it has released is acquired.
  /// False after the time is up, or once the call is broken.
  __device__ __forceinline__ bool wait_counter(const uint32_t* counter, uint32_t expected,
                                               Phase phase, uint64_t index) const {
    const uint64_t start = ptx::globaltimer();
    uint32_t seen = ptx::ld_relaxed_gpu_u32(counter);
#pragma unroll 1
    while (seen < expected) {
      if (is_forbidden()) return false;
      if (ptx::globaltimer() - start > buffer_.timeout_ns) {
        fail(ErrorKind::kTimeout, phase, buffer_.rank, expected, seen, index);
        return false;
      }
      seen = ptx::ld_relaxed_gpu_u32(counter);
    }
    ptx::ld_acquire_gpu_u32(counter);
    return true;
  }

  /// All threads of the CTA, when its warps have done with the call: the last CTA tells the peers
  /// that their slots are free and ends the call. `barrier`: a free named barrier.
  __device__ __forceinline__ void finish(uint32_t barrier) const {
    ptx::bar_sync(barrier, blockDim.x);  // all warps of this CTA have read their last slot
    // Not before: CTAs of dependents would take the SMs of other calls that this one waits for.
    ptx::griddepcontrol_launch_dependents();
    if (threadIdx.x >= 32) return;
    uint32_t is_last = 0;
    if (threadIdx.x == 0) {
      is_last = ptx::atom_acq_rel_gpu_add_u32(&buffer_.state->ctas_done, 1) == gridDim.x - 1;
    }
    is_last = ptx::shfl_sync_idx_b32(is_last, 0, 0x1f);
    ptx::bar_warp_sync();  // what lane 0 has acquired, all lanes know
    if (is_last == 0) return;
    if (threadIdx.x == 0) buffer_.state->ctas_done = 0;
    if (is_forbidden()) return;
    if (threadIdx.x == 0) buffer_.state->epoch = epoch_;
    if (threadIdx.x < buffer_.num_ranks && !is_masked(threadIdx.x)) {
      ptx::st_release_sys_u64(&mail(threadIdx.x, buffer_.rank)->consumed, epoch_);
    }
  }

 private:
  __device__ __forceinline__ static bool reached(uint64_t seen, uint64_t expected) {
    return static_cast<int64_t>(seen - expected) >= 0;
  }

  /// Acquires `expected` or a later epoch. False after the time is up, or once the call is broken.
  __device__ __forceinline__ bool wait(const uint64_t* address, uint64_t expected, uint32_t peer,
                                       Phase phase, uint64_t index) const {
    uint64_t seen = ptx::ld_acquire_sys_u64(address);
    if (reached(seen, expected)) return true;
    const uint64_t start = ptx::globaltimer();
    uint64_t waited = 0;
    Trouble told{};
    bool goes_on = true;
#pragma unroll 1
    while (goes_on) {
#pragma unroll 1
      for (uint32_t i = 0; i < kPollsPerLook && !reached(seen, expected); ++i) {
        seen = ptx::ld_relaxed_sys_u64(address);
      }
      waited = ptx::globaltimer() - start;
      if (reached(seen, expected)) break;
      told = Trouble::from_bits(ptx::ld_relaxed_sys_u64(&mail(buffer_.rank, peer)->trouble));
      goes_on = waited <= buffer_.timeout_ns && !is_forbidden() && !told.concerns(epoch_);
    }
    ptx::red_relaxed_gpu_add_u64(&buffer_.state->wait_ns[peer], waited);
    ptx::red_relaxed_gpu_add_u64(&buffer_.state->num_waits[peer], 1);
    seen = ptx::ld_acquire_sys_u64(address);
    if (reached(seen, expected)) return true;
    ErrorKind kind = ErrorKind::kTimeout;
    if (told.concerns(epoch_)) {
      kind = ErrorKind::kPeer;
      index = uint64_t{static_cast<uint32_t>(told.kind)} << 32 | peer;
      peer = told.blamed;
    } else if (waited <= buffer_.timeout_ns) {
      return false;  // another warp has failed
    }
    fail(kind, phase, peer, expected, seen, index);
    return false;
  }

  const BufferParams& buffer_;
  uint64_t epoch_;
  uint32_t masked_;
};

}  // namespace pykernels::moe
