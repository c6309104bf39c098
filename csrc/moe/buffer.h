// The buffer of one rank, as host and device see it: the window that its peers write, the state
// that only this rank touches, and the record of what went wrong.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace pykernels::moe {

inline constexpr uint32_t kMaxRanks = 32;      // a lane each
inline constexpr uint32_t kMaxTopk = 32;       // a lane each
inline constexpr uint32_t kMaxExperts = 1024;  // histograms in shared memory
inline constexpr uint32_t kBlockK = 128;       // columns of a scale factor

/// What a peer tells this rank; one a peer, written by that peer alone.
///
/// Numbers of calls only grow, from 1 on after a reset; two calls of a buffer that belong together
/// have the same one on all ranks.
struct Mail {
  uint64_t epoch;       // released last: of the call that the rest belongs to
  uint64_t consumed;    // call after which the peer reads this rank's slots in its window no more
  uint64_t signature;   // of its call
  uint32_t num_tokens;  // that the peer sends
  uint64_t trouble;     // Trouble::bits of the peer's first error since the reset, 0 without one
  // uint32_t counts[num_local_experts] follow: rows that it sends to each expert
};

/// What must agree between the ranks of a call.
enum class Call : uint32_t { kDispatch = 1, kCombine = 2 };

/// A combine's has the number of its dispatch in bits 63:32.
PK_HOST_DEVICE constexpr uint64_t signature(Call call, uint32_t payload_bytes, bool fp8) {
  return payload_bytes << 3 | static_cast<uint32_t>(fp8) << 2 | static_cast<uint32_t>(call);
}

/// One row of recv_x that a token has on its rank; num_entries of them, ascending by expert, then
/// k.
struct alignas(16) Entry {
  uint32_t expert;    // local
  uint32_t position;  // among the rows that the source sends to the expert
  float weight;
  uint32_t topk;  // which of the token's choices
};

/// Ahead of a slot's entries.
struct alignas(16) SlotHeader {
  uint32_t num_entries;
  uint32_t token;  // of the source, for people who look at it
  uint32_t unused[2];
};

/// Where things lie in a window. A slot is a header, num_topk entries, then the payload: values,
/// behind them scale factors.
struct WindowLayout {
  uint32_t mail_bytes = 0;  // from a rank's mail to the next
  uint32_t payload_offset = 0;
  uint32_t slot_bytes = 0;
  uint32_t max_tokens = 0;    // slots of a rank
  uint64_t flags_offset = 0;  // [num_ranks, max_tokens] epochs of the slots, 64 bits each
  uint64_t slots_offset = 0;
  uint64_t bytes = 0;  // of all

  PK_HOST_DEVICE uint64_t slot(uint32_t rank, uint32_t index) const {
    return slots_offset + (uint64_t{rank} * max_tokens + index) * slot_bytes;
  }
  PK_HOST_DEVICE uint64_t flag(uint32_t rank, uint32_t index) const {
    return flags_offset + (uint64_t{rank} * max_tokens + index) * sizeof(uint64_t);
  }
};

/// Sizes that a buffer is made for. All are checked.
struct BufferSizes {
  int64_t num_ranks = 1;
  int64_t num_experts = 1;
  int64_t num_topk = 1;
  int64_t num_max_tokens = 1;  // of a rank
  int64_t hidden = 8;          // values of a token, BF16 or FP8

  int64_t num_local_experts() const { return num_experts / num_ranks; }
};

/// Throws ArgumentError where the window would be larger than the kernels can address.
WindowLayout window_layout(const BufferSizes& sizes);

/// What only this rank's kernels write; zero after a reset, but for `masked`.
struct BufferState {
  uint64_t epoch;      // of the last call that has ended
  uint32_t failed;     // Failure::bits after an error
  uint32_t ctas_done;  // of the running kernel
  uint32_t masked;     // bit r: rank r is left out; written by the host between calls
  uint32_t unused;
  uint64_t wait_ns[kMaxRanks];  // that warps have waited for each rank
  uint64_t num_waits[kMaxRanks];
};

enum class ErrorKind : uint32_t {
  kNone = 0,
  kTimeout = 1,   // a peer did not come
  kCapacity = 2,  // more rows than recv_x holds: rows, capacity
  kMismatch = 3,  // the peer's call has another signature
  kExpert = 4,    // topk_idx: token and k in `index`, the value in `seen`
  kPeer = 5,      // a peer has told of an error: `peer` is to blame, `index` the one that told
                  // (bits 31:0) and the kind of the error (bits 63:32), none of these
  kArgument = 6,  // a call that the host has refused, in place of which the peers are told
  kHandle = 7,    // combine: the peer sends `seen` tokens back, of `expected` that it was sent
};

/// Whether all calls up to the one with this error are whole: ranks are in step then.
PK_HOST_DEVICE constexpr bool leaves_in_step(ErrorKind kind) {
  return kind == ErrorKind::kCapacity || kind == ErrorKind::kExpert || kind == ErrorKind::kArgument;
}

/// What a rank knows of its first error since the reset. No call is made behind it: such calls
/// leave no rows, and the epoch stays.
struct Failure {
  bool in_step;    // the call is made to its end, without what the wrong value concerns
  uint64_t epoch;  // of the last call that is made, modulo 2^30

  /// The greater one of two is the one that counts.
  PK_HOST_DEVICE constexpr uint32_t bits() const {
    return (in_step ? 1u : 2u) << 30 | (static_cast<uint32_t>(epoch) & kEpochMask);
  }
  PK_HOST_DEVICE static constexpr bool forbids(uint32_t bits, uint64_t epoch) {
    return bits >= 2u << 30 ||
           (bits != 0 && (bits & kEpochMask) != (static_cast<uint32_t>(epoch) & kEpochMask));
  }

  static constexpr uint32_t kEpochMask = (1u << 30) - 1;
};

/// What a rank tells its peers of its first error, in one word: so that they need not wait in vain
/// for a rank that is not to blame, or that makes no more calls.
struct Trouble {
  ErrorKind kind;
  uint32_t blamed;  // rank; its own where its values are wrong
  uint64_t epoch;   // of the last call that is whole on the rank that tells, modulo 2^48

  static constexpr uint64_t kEpochMask = (uint64_t{1} << 48) - 1;

  /// Whether what this rank awaits in a call may never come.
  PK_HOST_DEVICE constexpr bool concerns(uint64_t call) const {
    const auto behind = static_cast<int64_t>((call - epoch) << 16);  // of its 48 bits the sign
    return kind != ErrorKind::kNone && (!leaves_in_step(kind) || behind > 0);
  }

  PK_HOST_DEVICE constexpr uint64_t bits() const {
    return uint64_t{static_cast<uint32_t>(kind)} << 56 | uint64_t{blamed} << 48 |
           (epoch & kEpochMask);
  }
  PK_HOST_DEVICE static constexpr Trouble from_bits(uint64_t bits) {
    return {static_cast<ErrorKind>(bits >> 56), static_cast<uint32_t>(bits >> 48 & 0xff),
            bits & kEpochMask};
  }
};

/// What was waited for, and, of a timeout, what a call was doing.
enum class Phase : uint32_t {
  kDispatchSend = 1,     // for the peer to have taken the slots of the call before
  kDispatchCounts = 2,   // for the peer's counts
  kDispatchReceive = 3,  // for a token from the peer
  kCombineSend = 4,
  kCombineCounts = 5,
  kCombineReceive = 6,
  kCombineInput = 7,  // for this rank's own rows of y
};

/// The first error of a rank since the reset. In memory that the host reads at any time; `kind` is
/// released last.
struct ErrorRecord {
  uint32_t kind;
  uint32_t phase;
  uint32_t rank;
  uint32_t peer;
  uint64_t expected;
  uint64_t seen;
  uint64_t index;  // of the slot, or as the kind says
};

/// Rows of recv_x or y that share a counter, and columns of a stored row that it counts as one: as
/// the grouped GEMM has them.
inline constexpr uint32_t kCounterRows = 128;
inline constexpr uint32_t kCounterColumns = 8;

/// Counters of rows, through which a call overlaps with a grouped GEMM beside it. In the masked
/// layout each expert has its own.
struct RowCounters {
  uint32_t* counters = nullptr;  // nullptr: there is no kernel beside
  uint32_t num_counters = 0;
  uint32_t per_expert = 0;  // of the masked layout

  PK_HOST_DEVICE uint32_t index(uint32_t expert, uint32_t row) const {
    return expert * per_expert + row / kCounterRows;
  }
};

/// Of every kernel: the buffers of all ranks, from this rank's point of view.
struct BufferParams {
  uint8_t* windows[kMaxRanks] = {};  // of the ranks, in this rank's address space
  BufferState* state = nullptr;
  ErrorRecord* record = nullptr;
  uint64_t timeout_ns = 0;
  WindowLayout layout;
  uint32_t rank = 0;
  uint32_t num_ranks = 1;
  uint32_t num_local_experts = 1;
  uint32_t num_topk = 1;
};

}  // namespace pykernels::moe
