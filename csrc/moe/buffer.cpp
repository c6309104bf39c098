#include "moe/buffer.h"

#include <limits>

#include "core/check.h"
#include "core/math.h"

namespace pykernels::moe {
namespace {

constexpr int64_t kLine = 128;  // what different ranks write lies in different cache lines

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

}  // namespace

WindowLayout window_layout(const BufferSizes& sizes) {
  const int64_t payload = 2 * sizes.hidden;  // BF16; FP8 with its factors takes less
  const auto meta = static_cast<int64_t>(sizeof(SlotHeader) + sizes.num_topk * sizeof(Entry));
  const int64_t slot = round_up(meta, kLine) + round_up(payload, kLine);
  const int64_t slots = sizes.num_ranks * sizes.num_max_tokens;
  PK_CHECK(slot <= std::numeric_limits<uint32_t>::max() / 2,
           "a token's slot must be smaller than 2 GiB, got ", slot, " bytes");
  PK_CHECK(slots <= std::numeric_limits<int32_t>::max() / sizes.num_topk,
           "num_ranks * num_max_tokens_per_rank * num_topk must be below 2^31, got ",
           slots * sizes.num_topk);
  WindowLayout layout;
  layout.mail_bytes = static_cast<uint32_t>(
      round_up(static_cast<int64_t>(sizeof(Mail)) + 4 * sizes.num_local_experts(), kLine));
  layout.payload_offset = static_cast<uint32_t>(round_up(meta, kLine));
  layout.slot_bytes = static_cast<uint32_t>(slot);
  layout.max_tokens = static_cast<uint32_t>(sizes.num_max_tokens);
  layout.flags_offset = static_cast<uint64_t>(sizes.num_ranks) * layout.mail_bytes;
  layout.slots_offset = layout.flags_offset + static_cast<uint64_t>(round_up(8 * slots, kLine));
  layout.bytes = layout.slots_offset + static_cast<uint64_t>(slots * slot);
  return layout;
}

}  // namespace pykernels::moe
