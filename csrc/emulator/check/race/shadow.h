// The last accesses to each byte of memory, in cells that are as large as the accesses allow: a
// line of 128 bytes is one cell until parts of it are accessed, then chunks of 16 bytes, words,
// bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emulator/program.h"

namespace pykernels::emulator {

inline constexpr uint32_t kLineBytes = 128;

/// An access: who, when, and what kind.
struct Epoch {
  uint32_t cluster = 0;    // serial number
  uint32_t component = 0;  // of the cluster's clocks: lane 0 of a warp, or an asynchronous agent
  uint32_t clock = 0;      // 0: no access
  uint32_t what = 0;       // index of the instruction, and flags
  LaneMask lanes = 1;      // the threads component + i for each bit i

  bool same_agent(const Epoch& other) const {
    return component == other.component && cluster == other.cluster;
  }
};

// Flags in Epoch::what, above the index of the instruction.
inline constexpr int kWhatShift = 20;
inline constexpr uint32_t kWhatInstruction = (1u << kWhatShift) - 1;
inline constexpr uint32_t kWhatAsync = 1u << kWhatShift;         // through the async proxy
inline constexpr uint32_t kWhatStrong = 1u << (kWhatShift + 1);  // volatile, relaxed, atomic, ...
inline constexpr int kWhatScopeShift = kWhatShift + 2;           // 3 bits
inline constexpr uint32_t kWhatNonCoherent = 1u << (kWhatShift + 5);
inline constexpr uint32_t kWhatMany = 1u << (kWhatShift + 6);  // `component`: index of a ReadSet
// Of a cell that is a whole line: the lanes follow each other in words (1), pairs (2), quads (3).
inline constexpr int kWhatStripeShift = kWhatShift + 7;
inline constexpr uint32_t kWhatStripe = 3u << kWhatStripeShift;
// Of strong accesses: log2 of the bytes of a scalar, or kAnySize.
inline constexpr int kWhatSizeShift = kWhatShift + 9;  // 3 bits
inline constexpr uint32_t kWhatSize = 7u << kWhatSizeShift;
inline constexpr uint32_t kAnySize = 7;

struct Cell {
  Epoch write;
  Epoch read;  // since the write; may name a set of readers
};

/// Readers that nothing orders among each other.
using ReadSet = std::vector<Epoch>;

/// The cells of 128 bytes.
struct Line {
  uint8_t cell_shift = 7;       // a cell has 1 << cell_shift bytes: 7, 4, 2 or 0
  uint8_t allocated_shift = 7;  // the cell size that `cells` has room for
  Cell whole;
  std::unique_ptr<Cell[]> cells;  // where the line has more than one

  Cell* first() { return cell_shift == 7 ? &whole : cells.get(); }
  uint32_t num_cells() const { return kLineBytes >> cell_shift; }
  /// Cuts the line into cells of 1 << shift bytes, which copy what they are cut from.
  void split(uint32_t shift);
  /// One cell again, without readers, of a line that is written as a whole.
  void unite(const Epoch& write);
};

/// The cell size that a part of a line needs.
inline uint32_t shift_for(uint32_t begin, uint32_t end) {
  const uint32_t bits = begin | end;
  if ((bits & (kLineBytes - 1)) == 0) return 7;
  return (bits & 15) == 0 ? 4 : (bits & 3) == 0 ? 2 : 0;
}

/// The part of an epoch of a whole line that belongs to a smaller cell at this offset.
Epoch part_of(const Epoch& epoch, uint32_t offset);

/// Lines of global memory, made when they are touched.
class GlobalShadow {
 public:
  static constexpr uint64_t kLinesPerPage = 32;
  struct Page {
    Line lines[kLinesPerPage];
  };

  Line& line(uint64_t address);
  std::unordered_map<uint64_t, std::unique_ptr<Page>>& pages() { return pages_; }

 private:
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  uint64_t last_number_ = ~0ull;
  Page* last_ = nullptr;
};

}  // namespace pykernels::emulator
