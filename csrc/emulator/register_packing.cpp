#include "emulator/register_packing.h"

#include <algorithm>
#include <queue>

namespace pykernels::emulator {
namespace {

using Bits = std::vector<uint64_t>;

bool test(const Bits& bits, size_t i) { return (bits[i / 64] >> (i % 64) & 1) != 0; }
void set(Bits& bits, size_t i) { bits[i / 64] |= 1ull << (i % 64); }

struct Block {
  uint32_t begin = 0;
  uint32_t end = 0;
  std::vector<uint32_t> successors;
  Bits used;     // read before written in the block
  Bits written;  // written for certain
  Bits live_in;
  Bits live_out;
};

/// First and last instruction at which the register holds a value that matters.
struct Interval {
  uint32_t begin = UINT32_MAX;
  uint32_t end = 0;
  void include(uint32_t at) {
    begin = std::min(begin, at);
    end = std::max(end, at);
  }
};

class Liveness {
 public:
  Liveness(const Program& program, const std::vector<Flow>& flows, size_t num_registers)
      : program_(program), flows_(flows), num_registers_(num_registers) {}

  std::vector<Interval> intervals() {
    find_blocks();
    number_shared_registers();
    summarise_blocks();
    propagate();
    return collect();
  }

 private:
  template <typename Visit>
  void for_target(uint32_t at, Visit visit) const {
    if (flows_[at].has_target) visit(program_.instructions[at].target);
  }

  void find_blocks() {
    const auto count = static_cast<uint32_t>(program_.instructions.size());
    std::vector<bool> leader(count + 1, false);
    leader[0] = true;
    for (uint32_t at = 0; at < count; ++at) {
      bool ends = !flows_[at].falls_through;
      for_target(at, [&](uint32_t target) {
        leader[target] = true;
        ends = true;
      });
      if (ends) leader[at + 1] = true;
    }
    block_of_.resize(count);
    for (uint32_t at = 0; at < count; ++at) {
      if (leader[at]) blocks_.emplace_back().begin = at;
      blocks_.back().end = at + 1;
      block_of_[at] = static_cast<uint32_t>(blocks_.size() - 1);
    }
    for (Block& block : blocks_) {
      const uint32_t last = block.end - 1;
      if (flows_[last].falls_through && block.end < count) {
        block.successors.push_back(block_of_[block.end]);
      }
      for_target(last, [&](uint32_t target) {
        if (target < count) block.successors.push_back(block_of_[target]);
      });
    }
  }

  /// Only registers that more than one block names, or that a block reads before it writes them,
  /// take part in the data flow; the rest live and die within a block.
  void number_shared_registers() {
    std::vector<uint32_t> home(num_registers_, UINT32_MAX);
    shared_index_.assign(num_registers_, -1);
    for (uint32_t at = 0; at < program_.instructions.size(); ++at) {
      visit(at, [&](uint32_t index, bool is_write) {
        const bool first = home[index] == UINT32_MAX;
        if (first) home[index] = block_of_[at];
        const bool escapes =
            first ? !is_write || flows_[at].conditional : home[index] != block_of_[at];
        if (escapes && shared_index_[index] < 0) {
          shared_index_[index] = static_cast<int32_t>(shared_.size());
          shared_.push_back(index);
        }
      });
    }
  }

  /// Reads, then writes.
  template <typename Visit>
  void visit(uint32_t at, Visit visit_access) const {
    const Instruction& inst = program_.instructions[at];
    const RegisterAccess* access = program_.accesses.data() + inst.accesses_begin;
    for (int i = 0; i < inst.num_reads + inst.num_writes; ++i) {
      visit_access(access[i].register_index, i >= inst.num_reads);
    }
  }

  void summarise_blocks() {
    const size_t words = (shared_.size() + 63) / 64;
    for (Block& block : blocks_) {
      block.used.assign(words, 0);
      block.written.assign(words, 0);
      block.live_in.assign(words, 0);
      block.live_out.assign(words, 0);
      for (uint32_t at = block.begin; at < block.end; ++at) {
        visit(at, [&](uint32_t index, bool is_write) {
          const int32_t shared = shared_index_[index];
          if (shared < 0) return;
          if (!is_write) {
            if (!test(block.written, shared)) set(block.used, shared);
          } else if (!flows_[at].conditional) {
            set(block.written, shared);
          }
        });
      }
    }
  }

  void propagate() {
    const size_t words = (shared_.size() + 63) / 64;
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t b = blocks_.size(); b-- > 0;) {
        Block& block = blocks_[b];
        for (const uint32_t successor : block.successors) {
          const Bits& in = blocks_[successor].live_in;
          for (size_t w = 0; w < words; ++w) block.live_out[w] |= in[w];
        }
        for (size_t w = 0; w < words; ++w) {
          const uint64_t in = block.used[w] | (block.live_out[w] & ~block.written[w]);
          changed |= in != block.live_in[w];
          block.live_in[w] = in;
        }
      }
    }
  }

  std::vector<Interval> collect() const {
    std::vector<Interval> intervals(num_registers_);
    for (uint32_t at = 0; at < program_.instructions.size(); ++at) {
      visit(at, [&](uint32_t index, bool) { intervals[index].include(at); });
    }
    for (const Block& block : blocks_) {
      for (size_t i = 0; i < shared_.size(); ++i) {
        if (test(block.live_in, i)) intervals[shared_[i]].include(block.begin);
        if (test(block.live_out, i)) intervals[shared_[i]].include(block.end - 1);
      }
    }
    return intervals;
  }

  const Program& program_;
  const std::vector<Flow>& flows_;
  size_t num_registers_;
  std::vector<Block> blocks_;
  std::vector<uint32_t> block_of_;
  std::vector<int32_t> shared_index_;
  std::vector<uint32_t> shared_;
};

constexpr int kNumWidths = 4;
constexpr uint32_t kSlotBytes[kNumWidths] = {sizeof(LaneMask), 4 * kWarpSize, 8 * kWarpSize,
                                             16 * kWarpSize};

int width_class(int bits) { return bits == 1 ? 0 : bits <= 32 ? 1 : bits == 64 ? 2 : 3; }

/// Slots of one width, handed out in the order of the registers' first use.
class SlotPool {
 public:
  uint32_t take(const Interval& interval, bool pinned) {
    if (!pinned && !free_.empty() && free_.top().first < interval.begin) {
      const uint32_t slot = free_.top().second;
      free_.pop();
      free_.push({interval.end, slot});
      return slot;
    }
    if (!pinned) free_.push({interval.end, count_});
    return count_++;
  }
  uint32_t count() const { return count_; }

 private:
  using Entry = std::pair<uint32_t, uint32_t>;  // last use of the holder, slot
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> free_;
  uint32_t count_ = 0;
};

}  // namespace

RegisterLayout pack_registers(const Program& program, const std::vector<Flow>& flows,
                              const std::vector<VirtualRegister>& registers) {
  const std::vector<Interval> intervals = Liveness(program, flows, registers.size()).intervals();
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < registers.size(); ++i) {
    if (intervals[i].begin != UINT32_MAX) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return intervals[a].begin < intervals[b].begin; });
  SlotPool pools[kNumWidths];
  RegisterLayout layout;
  layout.slots.assign(registers.size(), kNoSlot);
  for (const uint32_t i : order) {
    layout.slots[i] = pools[width_class(registers[i].bits)].take(intervals[i], registers[i].pinned);
  }
  constexpr uint32_t kLine = 64;
  uint32_t base[kNumWidths];
  for (int width = 0; width < kNumWidths; ++width) {
    base[width] = layout.bytes;
    layout.bytes += (pools[width].count() * kSlotBytes[width] + kLine - 1) / kLine * kLine;
  }
  for (const uint32_t i : order) {
    const int width = width_class(registers[i].bits);
    layout.slots[i] = base[width] + layout.slots[i] * kSlotBytes[width];
  }
  return layout;
}

}  // namespace pykernels::emulator
